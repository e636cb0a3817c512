// Ranks of one host add numbers in memory that they share: see _shared_memory.py and the section "Why the meeting in
// shared memory is right" in README.md.
//
// Memory: a Board, then for each rank the round that it has entered, then for each rank two Parts with their numbers,
// used in turns. A round: each rank writes its part, the last to arrive opens the round, and every rank adds all parts
// in the order of the ranks. All zeros is the memory before the first round, which has the number 1.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <climits>
#endif

namespace {

constexpr long CAPACITY = 8192;  // numbers of a part
constexpr long LINE = 64;
constexpr long VERDICT = 4096;
enum Kind { DOUBLES, INTEGERS, OF_THE_FIRST };
enum Status { ADDED, WAITING, FAILED, DIFFERENT };
enum Failed : uint32_t { NO, BEING_WRITTEN, YES };

struct alignas(LINE) Board {
  int64_t ranks;
  alignas(LINE) std::atomic<uint32_t> arrivals;  // of all rounds
  alignas(LINE) std::atomic<uint32_t> round;     // the last that all ranks have entered: ranks sleep on it
  std::atomic<uint32_t> sleepers;
  alignas(LINE) std::atomic<uint32_t> failed;
  char verdict[VERDICT];
};
struct alignas(LINE) Entered { std::atomic<uint32_t> round; };
struct alignas(LINE) Part {
  int64_t kind, count;
  char what[112];
  uint64_t numbers[CAPACITY];
};
constexpr long HEAD = offsetof(Part, numbers);
static_assert(std::atomic<uint32_t>::is_always_lock_free, "processes share no locks of the library");
static_assert(sizeof(std::atomic<uint32_t>) == 4, "a futex has 32 bits");

Entered* entered(Board* board) { return (Entered*)(board + 1); }
Part* part(Board* board, long rank, uint32_t round) {
  return (Part*)(entered(board) + board->ranks) + 2 * rank + round % 2;
}
// Numbers of rounds may overflow.
bool is_before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__linux__)
// Returns after a wake-up, a signal, the time, or at once if the value differs.
void sleep_on(std::atomic<uint32_t>* word, uint32_t value, std::chrono::nanoseconds time) {
  timespec most = {(time_t)(time.count() / 1000000000), (long)(time.count() % 1000000000)};
  syscall(SYS_futex, (uint32_t*)word, FUTEX_WAIT, value, &most, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>* word) { syscall(SYS_futex, (uint32_t*)word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
#else  // never called: there is no meeting
void sleep_on(std::atomic<uint32_t>*, uint32_t, std::chrono::nanoseconds) {}
void wake_all(std::atomic<uint32_t>*) {}
#endif

void arrive(Board* board, long rank, uint32_t round) {
  entered(board)[rank].round.store(round, std::memory_order_release);
  // Of all arrivals the last sees the parts of all ranks, and who sees the round that it opens sees them, too.
  if (board->arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 != (uint32_t)board->ranks * round) return;
  // Sequentially consistent, as in wait: either this rank sees the sleeper, or the sleeper sees the round.
  board->round.store(round, std::memory_order_seq_cst);
  if (board->sleepers.load(std::memory_order_seq_cst)) wake_all(&board->round);
}

// Returns whether all ranks have entered the round.
bool wait(Board* board, uint32_t round, long spins, long milliseconds) {
  auto is_open = [&] { return !is_before(board->round.load(std::memory_order_acquire), round); };
  for (long i = 0; i < spins; i++) {
    if (is_open()) return true;
    pause();
  }
  auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
  while (!is_open()) {
    std::chrono::nanoseconds rest = end - std::chrono::steady_clock::now();
    if (rest.count() <= 0 || board->failed.load(std::memory_order_acquire)) return false;
    board->sleepers.fetch_add(1, std::memory_order_seq_cst);
    uint32_t seen = board->round.load(std::memory_order_seq_cst);
    if (is_before(seen, round)) sleep_on(&board->round, seen, rest);
    board->sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
  return true;
}

void add(Board* board, uint32_t round, int64_t kind, void* sums, long count) {
  memcpy(sums, part(board, 0, round)->numbers, count * 8);
  for (long rank = 1; kind != OF_THE_FIRST && rank < board->ranks; rank++) {
    const uint64_t* more = part(board, rank, round)->numbers;
    if (kind == DOUBLES)
      for (long i = 0; i < count; i++) ((double*)sums)[i] += ((const double*)more)[i];
    else
      for (long i = 0; i < count; i++) ((uint64_t*)sums)[i] += more[i];
  }
}

}  // namespace

extern "C" {

// The version of the functions below; 0 where a process cannot sleep until another one wakes it.
long sync_bn_meeting_version() {
#if defined(__linux__)
  return 1;
#else
  return 0;
#endif
}

long sync_bn_meeting_capacity() { return CAPACITY; }

long sync_bn_meeting_bytes(long ranks) { return sizeof(Board) + ranks * (sizeof(Entered) + 2 * sizeof(Part)); }

// memory: sync_bn_meeting_bytes(ranks) zeros, of which one rank calls this before any calls sync_bn_meet.
void sync_bn_meeting_begin(void* memory, long ranks) { ((Board*)memory)->ranks = ranks; }

// Replaces numbers, `count` of 8 bytes each, by the sums over the ranks. Returns ADDED, or
// WAITING: not all ranks came within the time. Call it again with is_again for the same round.
// FAILED: a rank has called sync_bn_meeting_fail. DIFFERENT: the ranks differ in kind, count or `what`.
int sync_bn_meet(void* memory, long rank, uint32_t round, bool is_again, int64_t kind, void* numbers, long count,
                 const char* what, long spins, long milliseconds) {
  Board* board = (Board*)memory;
  if (board->failed.load(std::memory_order_acquire)) return FAILED;
  Part* own = part(board, rank, round);
  if (!is_again) {
    own->kind = kind;
    own->count = count;
    strncpy(own->what, what, sizeof own->what - 1);
    memcpy(own->numbers, numbers, count * 8);
    arrive(board, rank, round);
  }
  if (!wait(board, round, spins, milliseconds))
    return board->failed.load(std::memory_order_acquire) ? FAILED : WAITING;
  for (long other = 0; other < board->ranks; other++)
    if (memcmp(part(board, other, round), own, HEAD)) return DIFFERENT;
  add(board, round, kind, numbers, count);
  return ADDED;
}

// Ends the meeting with a verdict, at most VERDICT - 1 bytes, which all ranks get. The first one counts.
void sync_bn_meeting_fail(void* memory, const char* verdict) {
  Board* board = (Board*)memory;
  uint32_t expected = NO;
  if (!board->failed.compare_exchange_strong(expected, BEING_WRITTEN)) return;
  strncpy(board->verdict, verdict, VERDICT - 1);
  board->failed.store(YES, std::memory_order_release);
  wake_all(&board->round);
}

// Returns the verdict, or nullptr before there is one.
const char* sync_bn_meeting_verdict(void* memory) {
  Board* board = (Board*)memory;
  return board->failed.load(std::memory_order_acquire) == YES ? board->verdict : nullptr;
}

// Returns the last round that all ranks have entered.
uint32_t sync_bn_meeting_open(void* memory) { return ((Board*)memory)->round.load(std::memory_order_acquire); }

// Returns the last round that a rank has entered.
uint32_t sync_bn_meeting_entered(void* memory, long rank) {
  return entered((Board*)memory)[rank].round.load(std::memory_order_acquire);
}

// Returns what a rank has entered in a round that it has entered last.
const char* sync_bn_meeting_what(void* memory, long rank, uint32_t round) { return part((Board*)memory, rank, round)->what; }

}  // extern "C"
