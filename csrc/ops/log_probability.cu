#include "../core/cuda.cuh"
#include "log_probability.h"

namespace pycc {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    log_probability_kernel(double* __restrict__ out, Draws draws, Event event, Rounding rounding) {
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < draws.count;
         i += std::int64_t{gridDim.x} * kThreads) {
        out[i] = log_probability(draws.population[i * draws.population_step],
                                 draws.given[i * draws.given_step],
                                 draws.drawn[i * draws.drawn_step], event, rounding);
    }
}

}  // namespace

void log_probability_cuda(double* out, const Draws& draws, Event event, Rounding rounding,
                          cudaStream_t stream) {
    if (draws.count == 0) return;
    log_probability_kernel<<<strided_blocks(draws.count, kThreads), kThreads, 0, stream>>>(
        out, draws, event, rounding);
    check_launch("log_probability");
}

}  // namespace pycc
