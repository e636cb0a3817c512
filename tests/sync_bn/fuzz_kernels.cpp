// Calls the loops of sync_bn/_kernels.cpp as often as it is told, with random shapes and arrays that are exactly as
// long as sync_bn/_native.py promises. Built with AddressSanitizer together with the loops; a read or write outside ends it.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

struct Shape { long outer, channels, inner; };

extern "C" {
void sync_bn_sums(bool half, const void* x, Shape s, double* sums);
void sync_bn_normalise(bool half, const void* x, const void* residual, void* z, Shape s, float slope,
                       const double* sums, double eps, const float* weight, const float* bias, double* kept);
void sync_bn_gradient_sums(bool half, const void* dz, const void* x, const void* residual, void* dy, Shape s,
                           float slope, double* kept, double* sums);
void sync_bn_input_gradient(bool half, const void* dz, const void* x, void* dx, Shape s, float slope, double* kept,
                            const double* count, const float* weight, const double* sums);
void sync_bn_update(long channels, const double* mean, const double* variance, const double* count,
                    double momentum, int64_t* batches, float* running_mean, float* running_var);
}

template <class T>
std::unique_ptr<T[]> array(long size) { return std::unique_ptr<T[]>(new T[size]()); }

int main(int, char** arguments) {
  const long lanes = 16, calls = atol(arguments[1]);
  std::mt19937 random(atol(arguments[2]));
  auto from_to = [&](long a, long b) { return std::uniform_int_distribution<long>(a, b)(random); };
  for (long call = 0; call < calls; call += 5) {
    // What _native._shape lets through: rows of 16 values and more, or 16 channels and more in channels_last.
    bool rows = from_to(0, 1), half = from_to(0, 1), large = from_to(0, 600) == 0;
    long scale = large ? 20 : 1;
    Shape s = rows ? Shape{from_to(1, 4 * scale), from_to(1, 6), lanes + from_to(0, 40 * scale)}
                   : Shape{from_to(1, 40 * scale), lanes + from_to(0, 40), 1};
    long size = s.outer * s.channels * s.inner, bytes = size * (half ? 2 : 4), c = s.channels;
    auto x = array<char>(bytes), dz = array<char>(bytes), residual = array<char>(bytes);
    auto z = array<char>(bytes), dy = array<char>(bytes), dx = array<char>(bytes);
    for (long i = 0; i < bytes; i += 1 + i / 64) x[i] = (char)random(), dz[i] = (char)random();
    auto sums = array<double>(2 * c + 1), kept = array<double>(6 * c), of_gradients = array<double>(2 * c);
    auto weight = array<float>(c), bias = array<float>(c), mean = array<float>(c), var = array<float>(c);
    const float *w = from_to(0, 1) ? weight.get() : nullptr, *b = from_to(0, 1) ? bias.get() : nullptr;
    const char* r = from_to(0, 1) ? residual.get() : nullptr;
    float slopes[] = {1, 0, 0.01f}, slope = slopes[from_to(0, 2)];
    auto batches = array<int64_t>(1);

    sync_bn_sums(half, x.get(), s, sums.get());
    sync_bn_normalise(half, x.get(), r, z.get(), s, slope, sums.get(), 1e-5, w, b, kept.get());
    bool needs_residual = r && slope != 1;
    sync_bn_gradient_sums(half, dz.get(), x.get(), needs_residual ? r : nullptr, needs_residual ? dy.get() : dz.get(),
                          s, slope, kept.get(), of_gradients.get());
    sync_bn_input_gradient(half, dz.get(), x.get(), dx.get(), s, needs_residual ? 1 : slope, kept.get(),
                           sums.get() + 2 * c, w, of_gradients.get());
    sync_bn_update(c, kept.get(), kept.get() + c, sums.get() + 2 * c, from_to(0, 1) ? -1 : 0.1, batches.get(),
                   mean.get(), var.get());
  }
  printf("%ld calls\n", calls);
}
