#include "../core/cuda.cuh"
#include "log_probability.h"

namespace pycc::log_probability {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    log_probability_kernel(double* __restrict__ out, const std::int64_t* __restrict__ population,
                           const std::int64_t* __restrict__ given,
                           const std::int64_t* __restrict__ drawn, Steps steps, Event event,
                           Rounding rounding) {
    for (const std::int64_t i : threads_of_grid(steps.count)) {
        out[i] = log_probability(population[i * steps.population], given[i * steps.given],
                                 drawn[i * steps.drawn], event, rounding);
    }
}

}  // namespace

void cuda(double* out /* [count] */, const std::int64_t* population /* [1 or count], d */,
          const std::int64_t* given /* [1 or count], n */,
          const std::int64_t* drawn /* [1 or count], k */, const Steps& steps, Event event,
          Rounding rounding, cudaStream_t stream) {
    if (steps.count == 0) return;
    launch("log_probability", log_probability_kernel, strided_blocks(steps.count, kThreads),
           kThreads, 0, stream, out, population, given, drawn, steps, event, rounding);
}

}  // namespace pycc::log_probability
