#include "ablate.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "../core/bits.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/simd.h"

namespace pycc::ablate {
namespace {

using Bits = std::unique_ptr<std::uint32_t[]>;

Bits new_bits(std::int64_t words) {
    return Bits(
        new std::uint32_t[static_cast<std::size_t>(words)]);  // uninitialised: cleared once, later
}

constexpr int kLanes = 16;  // blocks of the stream per batch

PYCC_SIMD void make_words(std::uint32_t* words /* [4*kLanes] */, const Stream& stream,
                          std::uint64_t first_block) noexcept {
    Words blocks[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        blocks[lane] = stream.block(first_block + static_cast<std::uint64_t>(lane));
    }
    std::memcpy(words, blocks, sizeof blocks);
}

// Sets the bits of the row's marked entries, word by word of the stream.
void mark(std::uint32_t* bits /* [words] */, const Ablation& ablation, std::int64_t row) {
    std::fill(bits, bits + ablation.words(), 0U);
    std::int64_t missing = ablation.marked();
    if (missing == 0) return;
    const Stream stream = ablation.stream(row);
    const Bounded bounded(static_cast<std::uint64_t>(ablation.size()));
    std::uint32_t words[4 * kLanes];
    for (std::uint64_t block = 0; missing > 0; block += kLanes) {
        make_words(words, stream, block);
        for (int i = 0; i < 4 * kLanes && missing > 0; ++i) {
            const std::int64_t entry = bounded(words[i]);
            if (entry < 0) continue;
            std::uint32_t& word = bits[entry / 32];
            const std::uint32_t bit = std::uint32_t{1} << (entry % 32);
            missing -= (word & bit) == 0;
            word |= bit;
        }
    }
}

// Lists the entries that a row keeps, ascending, from its bitmap.
template <class Index>
void list_bits(Index* list /* [kept] */, const std::uint32_t* bits /* [words] */,
               const Ablation& ablation) {
    const std::int64_t words = ablation.words(), size = ablation.size();
    for (std::int64_t i = 0; i < words; ++i) {
        std::uint32_t word = bits[i] ^ ablation.flip();
        if (size - 32 * i < 32) word &= (std::uint32_t{1} << (size - 32 * i)) - 1;
        for (; word != 0; word &= word - 1) {
            *list++ = static_cast<Index>(32 * i + __builtin_ctz(word));
        }
    }
}

// A bitmap is much faster, except for few entries of very many.
bool sorts(const Ablation& ablation) {
    return !ablation.marks_dropped() && ablation.words() > 1024 + 64 * ablation.marked();
}

// Lists the entries that a row keeps, ascending, by sorting the integers of the stream.
template <class Index>
void list_sorted(Index* list /* [kept] */, const Ablation& ablation, std::int64_t row) {
    const Stream stream = ablation.stream(row);
    const Bounded bounded(static_cast<std::uint64_t>(ablation.size()));
    Index* end = list;  // end of the entries so far, which are sorted and distinct
    std::int64_t next = 0;
    while (end - list < ablation.kept) {
        for (const std::int64_t stop = next + ablation.kept - (end - list); next < stop; ++next) {
            const Words words = stream.block(static_cast<std::uint64_t>(next / 4));
            const std::int64_t entry = bounded(words.at[next % 4]);
            if (entry >= 0) *end++ = static_cast<Index>(entry);
        }
        std::sort(list, end);
        end = std::unique(list, end);
    }
}

// The entries that each row keeps: as lists if they are few, else as bitmaps.
class Kept {
  public:
    Kept(const Ablation& ablation, int threads)
        : ablation_(ablation),
          listed_(!ablation.marks_dropped() && 64 * ablation.kept <= ablation.size()) {
        const std::int64_t rows = ablation.rows(), words = ablation.words();
        if (listed_) {
            lists_.reset(new std::uint32_t[static_cast<std::size_t>(rows * ablation.kept)]);
        } else {
            bits_ = new_bits(rows * words);
        }
        const std::int64_t nanoseconds = 1 + 10 * ablation.marked() + words / 4;
        parallel_for(rows, 200'000 / nanoseconds + 1, threads,
                     [&](std::int64_t begin, std::int64_t end) {
                         const Bits own = listed_ && !sorts(ablation) ? new_bits(words) : nullptr;
                         for (std::int64_t row = begin; row < end; ++row) {
                             if (!listed_) {
                                 mark(bits_.get() + row * words, ablation, row);
                             } else if (sorts(ablation)) {
                                 list_sorted(lists_.get() + row * ablation.kept, ablation, row);
                             } else {
                                 mark(own.get(), ablation, row);
                                 list_bits(lists_.get() + row * ablation.kept, own.get(), ablation);
                             }
                         }
                     });
    }

    bool listed() const { return listed_; }

    // Returns the row's bitmap.
    const std::uint32_t* bits(std::int64_t row) const {
        return bits_.get() + row * ablation_.words();
    }

    // Returns the kept entries of a listed row that lie in [first, first + count).
    std::pair<const std::uint32_t*, const std::uint32_t*> within(std::int64_t row,
                                                                 std::int64_t first,
                                                                 std::int64_t count) const {
        const std::uint32_t* list = lists_.get() + row * ablation_.kept;
        const auto before = [](std::uint32_t entry, std::int64_t bound) { return entry < bound; };
        const auto* begin = std::lower_bound(list, list + ablation_.kept, first, before);
        return {begin, std::lower_bound(begin, list + ablation_.kept, first + count, before)};
    }

  private:
    const Ablation& ablation_;
    bool listed_;
    std::unique_ptr<std::uint32_t[]> lists_;  // [rows,kept]
    Bits bits_;                               // [rows,words]
};

PYCC_SIMD void fill_stretch(float* out /* [count] */, std::int64_t count, float fill) noexcept {
    for (std::int64_t i = 0; i < count; ++i) out[i] = fill;
}

inline std::uint32_t lane_mask(std::uint32_t word, int lane) {
    return 0U - ((word >> lane) & 1U);
}

// Writes image where the (flipped) bits are set, and fill elsewhere.
PYCC_SIMD void blend_stretch(float* out /* [count] */, const float* image /* [count] */, float fill,
                             const std::uint32_t* bits /* [words] */, std::int64_t words,
                             std::int64_t first_bit, std::int64_t count,
                             std::uint32_t flip) noexcept {
    std::uint32_t other;
    std::memcpy(&other, &fill, sizeof other);
    std::int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const std::uint32_t word = bits_from(bits, words, first_bit + i) ^ flip;
        std::uint32_t values[32];
        std::memcpy(values, image + i, sizeof values);
        for (int lane = 0; lane < 32; ++lane) {
            const std::uint32_t mask = lane_mask(word, lane);
            values[lane] = (values[lane] & mask) | (other & ~mask);
        }
        std::memcpy(out + i, values, sizeof values);
    }
    for (; i < count; ++i) {
        out[i] = bit_at(bits, first_bit + i) != (flip != 0) ? image[i] : fill;
    }
}

// Adds grad where the (flipped) bits are set. Elsewhere it adds +0, which does not change the bits
// of a sum that began at +0.
PYCC_SIMD void add_stretch(float* sum /* [count] */, const float* grad /* [count] */,
                           const std::uint32_t* bits /* [words] */, std::int64_t words,
                           std::int64_t first_bit, std::int64_t count,
                           std::uint32_t flip) noexcept {
    std::int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const std::uint32_t word = bits_from(bits, words, first_bit + i) ^ flip;
        std::uint32_t values[32];
        float kept[32];
        std::memcpy(values, grad + i, sizeof values);
        for (int lane = 0; lane < 32; ++lane) values[lane] &= lane_mask(word, lane);
        std::memcpy(kept, values, sizeof kept);
        for (int lane = 0; lane < 32; ++lane) sum[i + lane] += kept[lane];
    }
    for (; i < count; ++i) {
        if (bit_at(bits, first_bit + i) != (flip != 0)) sum[i] += grad[i];
    }
}

constexpr std::int64_t kStretch = 1 << 15;    // entries that stay in a core's L2
constexpr std::int64_t kPerThread = 1 << 18;  // entries per thread: about 0.1 ms of work

}  // namespace

void cpu(float* out /* [N*draws,C,plane] */, const float* images /* [N,C,plane] */,
         const float* fill /* [C] */, const Ablation& ablation, int threads) {
    const std::int64_t plane = ablation.plane, channels = ablation.channels;
    const std::int64_t planes = ablation.rows() * channels;
    if (planes * plane == 0) return;
    expect_large_write(out, static_cast<std::size_t>(planes * plane) * sizeof(float));
    const Kept kept(ablation, threads);
    const std::int64_t stretches = (plane + kStretch - 1) / kStretch;
    parallel_for(
        planes * stretches, kPerThread / kStretch, threads,
        [&](std::int64_t begin, std::int64_t end) {
            std::vector<float> values;
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t row = i / stretches / channels, c = i / stretches % channels;
                const std::int64_t start = i % stretches * kStretch;
                const std::int64_t count = std::min(kStretch, plane - start);
                const std::int64_t first = ablation.first_bit(c) + start;
                const float* image = images + (row / ablation.draws * channels + c) * plane + start;
                float* target = out + (row * channels + c) * plane + start;
                if (!kept.listed()) {
                    blend_stretch(target, image, fill[c], kept.bits(row), ablation.words(), first,
                                  count, ablation.flip());
                    continue;
                }
                // All loads first: interleaved with stores, each load would wait for memory alone.
                const auto [low, high] = kept.within(row, first, count);
                values.resize(static_cast<std::size_t>(high - low));
                float* value = values.data();
                for (const auto* at = low; at < high; ++at) *value++ = image[*at - first];
                fill_stretch(target, count, fill[c]);
                value = values.data();
                for (const auto* at = low; at < high; ++at) target[*at - first] = *value++;
            }
        });
}

void backward_cpu(float* grad_images /* [N,C,plane] */,
                  const float* grad_out /* [N*draws,C,plane] */, const Ablation& ablation,
                  int threads) {
    const std::int64_t plane = ablation.plane, channels = ablation.channels;
    const std::int64_t planes = ablation.images * channels;
    if (planes * plane == 0) return;
    expect_large_write(grad_images, static_cast<std::size_t>(planes * plane) * sizeof(float));
    const Kept kept(ablation, threads);
    const std::int64_t stretches = (plane + kStretch - 1) / kStretch;
    parallel_for(planes * stretches, kPerThread / kStretch / (1 + ablation.draws), threads,
                 [&](std::int64_t begin, std::int64_t end) {
                     for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t n = i / stretches / channels;
                         const std::int64_t c = i / stretches % channels;
                         const std::int64_t start = i % stretches * kStretch;
                         const std::int64_t count = std::min(kStretch, plane - start);
                         const std::int64_t first = ablation.first_bit(c) + start;
                         float* sum = grad_images + (n * channels + c) * plane + start;
                         fill_stretch(sum, count, 0.0F);
                         for (std::int64_t j = 0; j < ablation.draws; ++j) {
                             const std::int64_t row = n * ablation.draws + j;
                             const float* grad = grad_out + (row * channels + c) * plane + start;
                             if (!kept.listed()) {
                                 add_stretch(sum, grad, kept.bits(row), ablation.words(), first,
                                             count, ablation.flip());
                                 continue;
                             }
                             const auto [low, high] = kept.within(row, first, count);
                             for (const auto* at = low; at < high; ++at) {
                                 sum[*at - first] += grad[*at - first];
                             }
                         }
                     }
                 });
}

void indices_cpu(std::int64_t* indices /* [kept] */, const Ablation& ablation, int /* threads */) {
    if (ablation.kept == 0) return;
    if (sorts(ablation)) {
        list_sorted(indices, ablation, 0);
        return;
    }
    const Bits bits = new_bits(ablation.words());
    mark(bits.get(), ablation, 0);
    list_bits(indices, bits.get(), ablation);
}

}  // namespace pycc::ablate
