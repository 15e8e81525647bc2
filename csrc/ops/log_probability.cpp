#include "log_probability.h"

#include <algorithm>

#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc {
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

// One argument of a block: in place, or a single value repeated.
class Operand {
  public:
    Operand(const std::int64_t* values, std::int64_t step) : values_(values), step_(step) {
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

void log_probability_cpu(double* out, const Draws& draws, Event event, Rounding rounding,
                         int threads) {
    constexpr std::int64_t kValuesPerThread = 10'000;  // 0.2 ms
    if (draws.count == 0) return;
    expect_large_write(out, static_cast<std::size_t>(draws.count) * sizeof(double));
    parallel_for(draws.count, kValuesPerThread, threads, [&](std::int64_t begin, std::int64_t end) {
        const Operand population(draws.population, draws.population_step);
        const Operand given(draws.given, draws.given_step);
        const Operand drawn(draws.drawn, draws.drawn_step);
        for (std::int64_t first = begin; first < end; first += kBlock) {
            log_probability_block(out + first, population.from(first), given.from(first),
                                  drawn.from(first), std::min(kBlock, end - first), event,
                                  rounding);
        }
    });
}

}  // namespace pycc
