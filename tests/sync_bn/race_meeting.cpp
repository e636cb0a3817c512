// Threads meet in the memory of sync_bn/_meeting.cpp as ranks do, as often as they are told, and check every sum. Built
// with ThreadSanitizer together with it: a read that no other thread's write is ordered before ends it.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

extern "C" {
long sync_bn_meeting_capacity();
long sync_bn_meeting_bytes(long ranks);
void sync_bn_meeting_begin(void* memory, long ranks);
int sync_bn_meet(void* memory, long rank, uint32_t round, bool is_again, int64_t kind, void* numbers, long count,
                 const char* what, long spins, long milliseconds);
void sync_bn_meeting_fail(void* memory, const char* verdict);
const char* sync_bn_meeting_verdict(void* memory);
uint32_t sync_bn_meeting_entered(void* memory, long rank);
}

enum Status { ADDED, WAITING, FAILED, DIFFERENT };

void stop(const char* message) {
  printf("%s\n", message);
  exit(1);
}

// The number that a rank brings to place i of a round, exact in float64.
int64_t number(long rank, uint32_t round, long i) { return (rank + 1) * 1000003 + round * 17 + i; }

void be_rank(void* memory, long rank, long ranks, uint32_t rounds, unsigned seed) {
  std::mt19937 random(seed + rank);
  std::vector<uint64_t> numbers(sync_bn_meeting_capacity());
  for (uint32_t round = 1; round <= rounds; round++) {
    bool doubles = round % 3;
    long count = round % 50 == 0 ? (long)numbers.size() : round % 40;
    int64_t kind = round % 7 == 0 ? 2 : doubles ? 0 : 1;
    for (long i = 0; i < count; i++) {
      if (doubles) *(double*)&numbers[i] = (double)number(rank, round, i);
      else numbers[i] = number(rank, round, i);
    }
    if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
    long spins = random() % 3 ? 0 : 100;
    int status = sync_bn_meet(memory, rank, round, false, kind, numbers.data(), count, "forward", spins, random() % 2);
    while (status == WAITING) {
      sync_bn_meeting_entered(memory, (rank + 1) % ranks);
      status = sync_bn_meet(memory, rank, round, true, kind, numbers.data(), count, "forward", 0, 1);
    }
    if (status != ADDED) stop("a rank did not add");
    for (long i = 0; i < count; i++) {
      int64_t expected = 0;
      for (long other = 0; other < (kind == 2 ? 1 : ranks); other++) expected += number(other, round, i);
      if ((doubles ? (int64_t)*(double*)&numbers[i] : (int64_t)numbers[i]) != expected) stop("a sum is wrong");
    }
  }
  // One rank differs. All are told, whether they look at the others' or at the verdict.
  const char* what = rank ? "forward" : "backward";
  int status = sync_bn_meet(memory, rank, rounds + 1, false, 0, numbers.data(), 1, what, 0, 1);
  while (status == WAITING) status = sync_bn_meet(memory, rank, rounds + 1, true, 0, numbers.data(), 1, what, 0, 1);
  if (status != DIFFERENT && status != FAILED) stop("a difference was not found");
  sync_bn_meeting_fail(memory, rank ? "of another rank" : "of the first rank");
  while (!sync_bn_meeting_verdict(memory)) std::this_thread::yield();
}

int main(int, char** arguments) {
  uint32_t rounds = atol(arguments[1]);
  for (long ranks = 2; ranks <= 4; ranks++) {
    void* memory = aligned_alloc(64, sync_bn_meeting_bytes(ranks));
    __builtin_memset(memory, 0, sync_bn_meeting_bytes(ranks));
    sync_bn_meeting_begin(memory, ranks);
    std::vector<std::thread> threads;
    for (long rank = 0; rank < ranks; rank++) threads.emplace_back(be_rank, memory, rank, ranks, rounds, 1);
    for (auto& thread : threads) thread.join();
    free(memory);
  }
  printf("%u rounds\n", rounds);
}
