#include "log_probability.h"

#include <algorithm>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::log_probability {
namespace {

constexpr std::int64_t kBlock = 512;

[[gnu::flatten]] PYCC_SIMD void log_probability_block(
    double* __restrict__ out /* [count] */,
    const std::int64_t* __restrict__ population /* [count] */,
    const std::int64_t* __restrict__ given /* [count] */,
    const std::int64_t* __restrict__ drawn /* [count] */, std::int64_t count, Event event,
    Rounding rounding) noexcept {
    for (std::int64_t i = 0; i < count; ++i) {
        out[i] = log_probability(population[i], given[i], drawn[i], event, rounding);
    }
}

// One argument for a block of values: the values themselves, or a single value repeated.
class Operand {
  public:
    Operand(const std::int64_t* values /* [1 or count] */, std::int64_t step)
        : values_(values), step_(step) {
        if (step == 0) std::fill_n(repeated_, kBlock, values[0]);
    }
    const std::int64_t* from(std::int64_t first) const {
        return step_ == 0 ? repeated_ : values_ + first;
    }

  private:
    const std::int64_t* values_;
    std::int64_t step_;
    std::int64_t repeated_[kBlock];
};

}  // namespace

void cpu(double* out /* [count] */, const std::int64_t* population /* [1 or count], d */,
         const std::int64_t* given /* [1 or count], n */,
         const std::int64_t* drawn /* [1 or count], k */, const Steps& steps, Event event,
         Rounding rounding, int threads) {
    constexpr std::int64_t kValuesPerThread = 10'000;  // 0.2 ms
    if (steps.count == 0) return;
    expect_large_write(out, static_cast<std::size_t>(steps.count) * sizeof(double));
    parallel_for(steps.count, kValuesPerThread, threads, [&](std::int64_t begin, std::int64_t end) {
        const Operand populations(population, steps.population);
        const Operand givens(given, steps.given);
        const Operand drawns(drawn, steps.drawn);
        for (std::int64_t first = begin; first < end; first += kBlock) {
            log_probability_block(out + first, populations.from(first), givens.from(first),
                                  drawns.from(first), std::min(kBlock, end - first), event,
                                  rounding);
        }
    });
}

}  // namespace pycc::log_probability
