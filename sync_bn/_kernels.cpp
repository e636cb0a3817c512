// The four passes over the data on a CPU, each of which reads its inputs once, in memory order.
//
// A tensor (N, C, ...) is treated as outer x channels x inner values: (N, C, S) if it is contiguous, (N*S, C, 1)
// if it is channels_last. Values are float or bfloat16, and computations are in float; coefficients are float, one
// per channel. The caller must ensure that inner is at least LANES, or that it is 1 and channels is at least LANES.
//
// Sums are accumulated in float over at most CHUNK values, and in double beyond that. No result depends on the
// number of threads. Threads are torch's own: GOMP_parallel is not linked but found in the process.

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr long LANES = 16;       // a vector: one cache line of float
constexpr long CHUNK = 2048;     // values of a channel that are accumulated in float, over all lanes
constexpr long BLOCK = 1 << 19;  // values of an (N*S, C, 1) tensor that one thread accumulates at a time
constexpr long ROWS_AT_ONCE = 16;  // rows accumulated in float if each lane is a channel
constexpr long ROWS_WITH_ONE_LOAD = 4;  // rows that share one load of their channels' coefficients

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef double Doubles __attribute__((vector_size(8 * LANES)));

struct BFloat16 { uint16_t bits; };
struct Two { Floats first, second; };
struct Shape { long outer, channels, inner; };

// Code is compiled once per instruction set; the loader selects the best one for the CPU.
#if defined(FOR_EVERY_CPU)  // a build that needs one only
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_CPU __attribute__((noinline, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_CPU
#endif
// Functions that are not inlined into a FOR_EVERY_CPU function would be compiled for the baseline CPU only.
#define ALWAYS __attribute__((always_inline))
#define INLINE inline ALWAYS

INLINE Floats all(float value) { return Floats{} + value; }
INLINE long least(long a, long b) { return a < b ? a : b; }

INLINE Floats load(const float* p) { Floats v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, Floats v) { memcpy(p, &v, sizeof v); }

INLINE Floats load(const BFloat16* p) {
  Halves upper;
  memcpy(&upper, p, sizeof upper);
  return (Floats)(__builtin_convertvector(upper, Words) << 16);
}

INLINE void store(BFloat16* p, Floats v) {
  Words bits = (Words)v, quiet_nan = Words{} + 0x7fc0;
  Words to_nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Halves upper = __builtin_convertvector(v == v ? to_nearest_even : quiet_nan, Halves);
  memcpy(p, &upper, sizeof upper);
}

INLINE void add_to(double* p, Floats v) {
  Doubles sum;
  memcpy(&sum, p, sizeof sum);
  sum += __builtin_convertvector(v, Doubles);
  memcpy(p, &sum, sizeof sum);
}

INLINE double total(Floats v) {
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] += v[i + width];
  return v[0];
}

// True in the last `count` lanes. The remainder of a row is read as its last LANES values.
INLINE Ints last_lanes(long count) {
  Ints lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane >= Ints{} + (int)(LANES - count);
}

INLINE void add(Two& sum, Two v) {
  sum.first += v.first;
  sum.second += v.second;
}

INLINE Two only(Ints lanes, Two v) { return {lanes ? v.first : Floats{}, lanes ? v.second : Floats{}}; }

// Calls f(position, coefficients) for all values of the rows [begin, end): a row is (o, c) or, with inner = 1,
// one o with all channels. Some values may be visited twice.
template <int K, class F>
INLINE void each(Shape s, long begin, long end, const float* const (&coefficients)[K], F f) {
  Floats k[K];
  if (s.inner > 1) {
    for (long row = begin, c = begin % s.channels; row < end; row++) {
      for (int j = 0; j < K; j++) k[j] = all(coefficients[j][c]);
      c = c + 1 < s.channels ? c + 1 : 0;
      long at = row * s.inner, last = at + s.inner - LANES;
      for (; at < last; at += LANES) f(at, k);
      f(last, k);
    }
    return;
  }
  for (long top = begin; top < end; top += ROWS_WITH_ONE_LOAD) {
    long bottom = least(top + ROWS_WITH_ONE_LOAD, end);
    for (long c = 0; c < s.channels; c += LANES) {
      long from = least(c, s.channels - LANES);
      for (int j = 0; j < K; j++) k[j] = load(coefficients[j] + from);
      for (long row = top; row < bottom; row++) f(row * s.channels + from, k);
    }
  }
}

// Sums the two vectors of f(position, coefficients) for the channels [begin, end) of an (N, C, S) tensor.
template <int K, class F>
INLINE void sum_rows(Shape s, long begin, long end, const float* const (&coefficients)[K], double* sums, F f) {
  Ints rest = last_lanes(s.inner % LANES);
  for (long c = begin; c < end; c++) {
    Floats k[K];
    for (int j = 0; j < K; j++) k[j] = all(coefficients[j][c]);
    double first = 0, second = 0;
    Two even = {}, odd = {};  // two independent chains of additions, to hide their latency
    long held = 0;
    auto fold = [&]() ALWAYS {
      first += total(even.first + odd.first);
      second += total(even.second + odd.second);
      even = odd = Two{};
      held = 0;
    };
    for (long o = 0; o < s.outer; o++) {
      long at = (o * s.channels + c) * s.inner, end_of_row = at + s.inner;
      for (; at + 2 * LANES <= end_of_row; at += 2 * LANES) {
        add(even, f(at, k));
        add(odd, f(at + LANES, k));
        if ((held += 2 * LANES) >= CHUNK) fold();
      }
      if (at + LANES <= end_of_row) { add(even, f(at, k)); at += LANES; held += LANES; }
      if (at < end_of_row) { add(odd, only(rest, f(end_of_row - LANES, k))); held += LANES; }
      if (held >= CHUNK) fold();  // also for rows too short for the loop above
    }
    fold();
    sums[c] = first;
    sums[s.channels + c] = second;
  }
}

// Sums them over the rows [begin, end) of an (N*S, C, 1) tensor, for all channels.
template <int K, class F>
INLINE void sum_columns(Shape s, long begin, long end, const float* const (&coefficients)[K], double* sums, F f) {
  memset(sums, 0, 2 * s.channels * sizeof(double));
  for (long top = begin; top < end; top += ROWS_AT_ONCE) {
    long bottom = least(top + ROWS_AT_ONCE, end);
    for (long c = 0; c < s.channels; c += LANES) {
      long from = least(c, s.channels - LANES);
      Floats k[K];
      for (int j = 0; j < K; j++) k[j] = load(coefficients[j] + from);
      Two even = {}, odd = {};
      long row = top;
      for (; row + 2 <= bottom; row += 2) {
        add(even, f(row * s.channels + from, k));
        add(odd, f((row + 1) * s.channels + from, k));
      }
      if (row < bottom) add(even, f(row * s.channels + from, k));
      add(even, odd);
      even = only(last_lanes(LANES - (c - from)), even);
      add_to(sums + from, even.first);
      add_to(sums + s.channels + from, even.second);
    }
  }
}

template <int K, class F>
INLINE void sum(Shape s, long begin, long end, const float* const (&coefficients)[K], double* sums, F f) {
  if (s.inner > 1) sum_rows(s, begin, end, coefficients, sums, f);
  else sum_columns(s, begin, end, coefficients, sums, f);
}

// shift = a first estimate of the mean: that of the first sample, or of some rows spread over the batch.
template <class T>
INLINE void first_means(const T* x, Shape s, long begin, long end, float* shift) {
  if (s.inner > 1) {
    for (long c = begin; c < end; c++) {
      const T* row = x + c * s.inner;
      Floats sum = {};
      long i = 0;
      for (; i + LANES <= s.inner; i += LANES) sum += load(row + i);
      shift[c] = (float)(total(sum) / i);
    }
  } else {
    long rows = least(ROWS_AT_ONCE, s.outer);
    for (long c = 0; c < s.channels; c += LANES) {
      long from = least(c, s.channels - LANES);
      Floats sum = {};
      for (long i = 0; i < rows; i++) sum += load(x + i * s.outer / rows * s.channels + from);
      store(shift + from, sum / (float)rows);
    }
  }
}

// sums = [sum of x, sum of x*x, n], computed from the sums of d = x - shift and d*d, without cancellation.
template <class T>
INLINE void sums_about_zero(const T* x, Shape s, long begin, long end, const float* shift, double* sums) {
  sum(s, begin, end, {shift}, sums, [&](long at, const Floats* k) ALWAYS {
    Floats d = load(x + at) - k[0];
    return Two{d, d * d};
  });
  bool rows = s.inner > 1;
  double n = rows ? s.outer * s.inner : end - begin;
  for (long c = rows ? begin : 0; c < (rows ? end : s.channels); c++) {
    double of_d = sums[c], of_shift = n * shift[c];
    sums[c] = of_d + of_shift;
    sums[s.channels + c] += shift[c] * (2 * of_d + of_shift);
  }
  if (begin == 0 || !rows) sums[2 * s.channels] = n;
}

// Moves the shift of channel c to the mean if the shift is so far from it that d*d has lost digits, as after a blank
// first sample. Returns whether it did; then the caller must sum again.
INLINE bool moved_to_mean(Shape s, long blocks, const double* sums, long c, float* shift) {
  double n = s.outer * s.inner, sum = 0, squares = 0;
  for (const double* of = sums + c; blocks--; of += 2 * s.channels + 1) {
    sum += of[0];
    squares += of[s.channels];
  }
  double mean = sum / n, off = mean - shift[c], variance = squares / n - mean * mean;
  bool far = off * off > 16 * variance + 1e-12 * mean * mean;  // the last term allows for rounding of the shift
  if (far) shift[c] = (float)mean;
  return far;
}

// The activation's input. Forward and backward must agree on its sign, so both use this function.
INLINE Floats scaled(Floats x, const Floats* k) { return (x - k[0]) * k[1] + k[2]; }

struct Coefficients { const float *shift, *scale, *offset; float slope; };

// v where y is above 0, slope*v elsewhere: the activation of y if v is y, the gradient of y if v is that of z. With
// slope 0, infinite values and NaN become 0 where y <= 0, as in torch's relu.
INLINE Floats through(Floats v, Floats y, Floats slope) {
  Floats below = slope == 0 ? Floats{} : slope * v;
  return y <= 0 ? below : v;
}

// z = activation((x - shift)*scale + offset + residual)
template <bool RESIDUAL, class T>
INLINE void normalise(const T* x, const T* residual, T* z, Shape s, long begin, long end, Coefficients c) {
  Floats slope = all(c.slope);
  each(s, begin, end, {c.shift, c.scale, c.offset}, [&](long at, const Floats* k) ALWAYS {
    Floats y = scaled(load(x + at), k);
    if (RESIDUAL) y += load(residual + at);
    store(z + at, through(y, y, slope));
  });
}

// sums = [sum of dy, sum of dy*xhat], dy = dz*activation'. With a residual, stores dy, which is its gradient.
template <bool ACTIVATION, bool RESIDUAL, class T>
INLINE void gradient_sums(const T* dz, const T* x, const T* residual, T* dy, Shape s, long begin, long end,
                          Coefficients c, const double* rest, const double* invstd, double* sums) {
  Floats slope = all(c.slope);
  sum(s, begin, end, {c.shift, c.scale, c.offset}, sums, [&](long at, const Floats* k) ALWAYS {
    Floats value = load(x + at), g = load(dz + at);
    if (ACTIVATION) {
      Floats y = scaled(value, k);
      if (RESIDUAL) y += load(residual + at);
      g = through(g, y, slope);
      if (RESIDUAL) store(dy + at, g);
    }
    return Two{g, g * (value - k[0])};
  });
  bool rows = s.inner > 1;
  for (long i = rows ? begin : 0; i < (rows ? end : s.channels); i++)
    sums[s.channels + i] = (sums[s.channels + i] - rest[i] * sums[i]) * invstd[i];
}

// dx = a*dy + b*(x - shift) + c
template <bool ACTIVATION, class T>
INLINE void input_gradient(const T* dz, const T* x, T* dx, Shape s, long begin, long end, Coefficients c,
                           const float* of_dy, const float* of_x, const float* constant) {
  Floats slope = all(c.slope);
  each(s, begin, end, {c.shift, c.scale, c.offset, of_dy, of_x, constant}, [&](long at, const Floats* k) ALWAYS {
    Floats value = load(x + at), g = load(dz + at);
    if (ACTIVATION) g = through(g, scaled(value, k), slope);
    store(dx + at, k[3] * g + (k[4] * (value - k[0]) + k[5]));
  });
}

// One thread's part of each pass, compiled for every CPU. half: whether the pointers are to bfloat16, else to float.

FOR_EVERY_CPU void first_means_of(bool half, const void* x, Shape s, long begin, long end, float* shift) {
  if (half) first_means((const BFloat16*)x, s, begin, end, shift);
  else first_means((const float*)x, s, begin, end, shift);
}

FOR_EVERY_CPU void sums_of(bool half, const void* x, Shape s, long begin, long end, const float* shift,
                                   double* sums) {
  if (half) sums_about_zero((const BFloat16*)x, s, begin, end, shift, sums);
  else sums_about_zero((const float*)x, s, begin, end, shift, sums);
}

template <class T>
INLINE void normalise_as(const void* x, const void* residual, void* z, Shape s, long begin, long end,
                         Coefficients c) {
  if (residual) normalise<true>((const T*)x, (const T*)residual, (T*)z, s, begin, end, c);
  else normalise<false>((const T*)x, (const T*)nullptr, (T*)z, s, begin, end, c);
}

FOR_EVERY_CPU void normalise_of(bool half, const void* x, const void* residual, void* z, Shape s, long begin,
                                long end, Coefficients c) {
  if (half) normalise_as<BFloat16>(x, residual, z, s, begin, end, c);
  else normalise_as<float>(x, residual, z, s, begin, end, c);
}

template <class T>
INLINE void gradient_sums_as(const void* dz, const void* x, const void* residual, void* dy, Shape s, long begin,
                             long end, Coefficients c, const double* rest, const double* invstd, double* sums) {
  const T *g = (const T*)dz, *values = (const T*)x, *r = (const T*)residual;
  if (r) gradient_sums<true, true>(g, values, r, (T*)dy, s, begin, end, c, rest, invstd, sums);
  else if (c.slope != 1) gradient_sums<true, false>(g, values, r, (T*)dy, s, begin, end, c, rest, invstd, sums);
  else gradient_sums<false, false>(g, values, r, (T*)dy, s, begin, end, c, rest, invstd, sums);
}

FOR_EVERY_CPU void gradient_sums_of(bool half, const void* dz, const void* x, const void* residual, void* dy,
                                    Shape s, long begin, long end, Coefficients c, const double* rest,
                                    const double* invstd, double* sums) {
  if (half) gradient_sums_as<BFloat16>(dz, x, residual, dy, s, begin, end, c, rest, invstd, sums);
  else gradient_sums_as<float>(dz, x, residual, dy, s, begin, end, c, rest, invstd, sums);
}

template <class T>
INLINE void input_gradient_as(const void* dz, const void* x, void* dx, Shape s, long begin, long end,
                              Coefficients c, const float* of_dy, const float* of_x, const float* constant) {
  const T *g = (const T*)dz, *values = (const T*)x;
  if (c.slope != 1) input_gradient<true>(g, values, (T*)dx, s, begin, end, c, of_dy, of_x, constant);
  else input_gradient<false>(g, values, (T*)dx, s, begin, end, c, of_dy, of_x, constant);
}

FOR_EVERY_CPU void input_gradient_of(bool half, const void* dz, const void* x, void* dx, Shape s, long begin,
                                     long end, Coefficients c, const float* of_dy, const float* of_x,
                                     const float* constant) {
  if (half) input_gradient_as<BFloat16>(dz, x, dx, s, begin, end, c, of_dy, of_x, constant);
  else input_gradient_as<float>(dz, x, dx, s, begin, end, c, of_dy, of_x, constant);
}

template <class F>
void in_threads(long count, long at_once, F part) {
#pragma omp parallel for schedule(static)
  for (long begin = 0; begin < count; begin += at_once) part(begin, least(begin + at_once, count));
}

// Runs an elementwise pass over rows, about 64 KiB of float at a time.
template <class F>
void map_in_threads(Shape s, F part) {
  bool rows = s.inner > 1;
  in_threads(rows ? s.outer * s.channels : s.outer, 1 + 16384 / (rows ? s.inner : s.channels), part);
}

// Scratch memory for the duration of a function: a few numbers per channel.
template <class T>
struct Room {
  T* const at;
  explicit Room(long size) : at((T*)malloc(size * sizeof(T) + 1)) { if (!at) abort(); }
  ~Room() { free(at); }
  Room(const Room&) = delete;
};

// Runs a reduction. An (N, C, S) tensor is split by channels, directly into `sums`; an (N*S, C, 1) tensor by blocks of
// rows, whose own sums are then added in a fixed order. again(blocks, their sums) says whether to repeat it.
template <class F, class G>
void sum_in_threads(Shape s, double* sums, long size, F part, G again) {
  if (s.inner > 1) return in_threads(s.channels, 4, [&](long b, long e) { part(b, e, sums); });
  long rows = BLOCK / s.channels < LANES ? LANES : BLOCK / s.channels, blocks = (s.outer + rows - 1) / rows;
  Room<double> room(blocks > 1 ? blocks * size : 0);
  double* of_blocks = blocks > 1 ? room.at : sums;
  do in_threads(s.outer, rows, [&](long b, long e) { part(b, e, of_blocks + b / rows * size); });
  while (again(blocks, of_blocks));
  for (long i = 0; blocks > 1 && i < size; i++) {
    sums[i] = 0;
    for (long block = 0; block < blocks; block++) sums[i] += of_blocks[block * size + i];
  }
}

// What the forward pass saves for the backward pass, in one buffer of 6*C doubles.
struct Kept {
  double *mean, *variance, *rest, *invstd;
  float *shift, *scale, *offset;
  Kept(double* at, long channels)
      : mean(at), variance(at + channels), rest(at + 2 * channels), invstd(at + 3 * channels),
        shift((float*)(at + 4 * channels)), scale(shift + channels), offset(scale + channels) {}
  Coefficients with(float slope) const { return {shift, scale, offset, slope}; }
};

}  // namespace

extern "C" {

// The version of the interface. Increase it whenever a signature below changes; the caller checks it first.
long sync_bn_interface() { return 3; }

// sums = [sum of x, sum of x*x, n], 2*C+1
void sync_bn_sums(bool half, const void* x, Shape s, double* sums) {
  bool rows = s.inner > 1;
  Room<float> room(s.channels);
  float* shift = room.at;
  if (!rows) first_means_of(half, x, s, 0, 0, shift);
  auto part = [&](long begin, long end, double* to) {
    if (rows) first_means_of(half, x, s, begin, end, shift);
    sums_of(half, x, s, begin, end, shift, to);
    for (long c = begin; rows && c < end; c++)
      if (moved_to_mean(s, 1, sums, c, shift)) sums_of(half, x, s, c, c + 1, shift, sums);
  };
  bool moved = false;
  sum_in_threads(s, sums, 2 * s.channels + 1, part, [&](long blocks, const double* of_blocks) {
    if (moved) return false;
    for (long c = 0; c < s.channels; c++) moved |= moved_to_mean(s, blocks, of_blocks, c, shift);
    return moved;
  });
}

void sync_bn_normalise(bool half, const void* x, const void* residual, void* z, Shape s, float slope,
                       const double* sums, double eps, const float* weight, const float* bias, double* kept) {
  Kept k(kept, s.channels);
  double n = sums[2 * s.channels] < 1 ? 1 : sums[2 * s.channels];
  for (long c = 0; c < s.channels; c++) {
    double mean = sums[c] / n, variance = sums[s.channels + c] / n - mean * mean;
    variance = variance < 0 ? 0 : variance;
    double invstd = 1 / __builtin_sqrt(variance + eps), scale = weight ? invstd * weight[c] : invstd;
    float shift = (float)mean;
    double rest = mean - shift;
    k.mean[c] = mean;
    k.variance[c] = variance;
    k.rest[c] = rest;
    k.invstd[c] = invstd;
    k.shift[c] = shift;
    k.scale[c] = (float)scale;
    k.offset[c] = (float)((bias ? bias[c] : 0) - rest * scale);
  }
  Coefficients by = k.with(slope);
  map_in_threads(s, [&](long begin, long end) { normalise_of(half, x, residual, z, s, begin, end, by); });
}

// sums = [sum of dy, sum of dy*xhat], 2*C
void sync_bn_gradient_sums(bool half, const void* dz, const void* x, const void* residual, void* dy, Shape s,
                           float slope, double* kept, double* sums) {
  Kept k(kept, s.channels);
  auto part = [&](long begin, long end, double* to) {
    gradient_sums_of(half, dz, x, residual, dy, s, begin, end, k.with(slope), k.rest, k.invstd, to);
  };
  sum_in_threads(s, sums, 2 * s.channels, part, [](long, const double*) { return false; });
}

void sync_bn_input_gradient(bool half, const void* dz, const void* x, void* dx, Shape s, float slope, double* kept,
                            const double* count, const float* weight, const double* sums) {
  long channels = s.channels;
  Kept k(kept, channels);
  double n = *count < 1 ? 1 : *count;
  Room<float> room(3 * channels);
  float *of_dy = room.at, *of_x = of_dy + channels, *constant = of_x + channels;
  for (long c = 0; c < channels; c++) {
    double a = weight ? k.invstd[c] * weight[c] : k.invstd[c], b = a * k.invstd[c] * sums[channels + c] / n;
    of_dy[c] = (float)a;
    of_x[c] = (float)-b;
    constant[c] = (float)(b * k.rest[c] - a * sums[c] / n);
  }
  map_in_threads(s, [&](long begin, long end) {
    input_gradient_of(half, dz, x, dx, s, begin, end, k.with(slope), of_dy, of_x, constant);
  });
}

// momentum < 0: running statistics are the average of all batches
void sync_bn_update(long channels, const double* mean, const double* variance, const double* count,
                    double momentum, int64_t* batches, float* running_mean, float* running_var) {
  if (!(*count > 0)) return;
  *batches += 1;
  double share = momentum < 0 ? 1.0 / *batches : momentum;
  double unbiased = *count > 1 ? *count / (*count - 1) : 1;
  for (long c = 0; c < channels; c++) {
    running_mean[c] = (float)((1 - share) * running_mean[c] + share * mean[c]);
    running_var[c] = (float)((1 - share) * running_var[c] + share * unbiased * variance[c]);
  }
}

}  // extern "C"
