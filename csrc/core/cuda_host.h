// CUDA's language and runtime on the CPU, as far as pycc's kernels use them: the same sources then
// run, and are tested, on machines without a GPU.
//
// The blocks of a grid run one after another, in any order. The threads of a block are fibers that
// stop at barriers and at the exchanges of a warp; those that can run are resumed in any order.
// What hardware may leave undefined is an error or shows: shared memory holds junk at first and is
// allocated to the byte, for AddressSanitizer; a lane that an exchange reads but that is not in its
// mask gives junk; threads that wait for others that can no longer come end the launch. Exchanges
// meet by their kind and mask: two of one kind at different places of the source are not told
// apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 700  // the branches of present devices

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int across = 1, unsigned int down = 1, unsigned int deep = 1)
        : x(across), y(down), z(deep) {}
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
inline const char* cudaGetErrorString(cudaError_t) {
    return "no error";
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

namespace pycc::host {

// What tests vary. `seed` orders blocks and threads at random and chooses the junk; 0 keeps them in
// order. `most_blocks` limits grids along each axis; 0 does not.
struct Emulation {
    std::uint64_t seed = 0;
    std::int64_t most_blocks = 0;
};
inline Emulation emulation;

// The place of the running thread.
struct Place {
    dim3 thread, block, threads, blocks;
};
const Place& place();

// Runs `thread` for every thread of a grid. Throws std::runtime_error, naming the kernel, where it
// breaks a rule of CUDA.
void run(const char* kernel, dim3 grid, dim3 block, std::size_t shared,
         const std::function<void()>& thread);

// The memory of the running block for the variable declared at `site`, junk when it is new.
void* shared_memory(const void* site, std::size_t bytes, std::size_t alignment);
void* dynamic_shared_memory();

template <class T>
T& shared_variable(const void* site) {
    static_assert(std::is_trivially_default_constructible_v<std::remove_all_extents_t<T>>,
                  "shared variables are not initialised");
    return *static_cast<T*>(shared_memory(site, sizeof(T), alignof(T)));
}

// Waits for all threads of the block at the same place of the source, and counts those for which
// `counts` holds.
int barrier(const char* file, int line, bool counts);

// What the lanes of a warp exchange.
enum class Exchange { ballot, match_any, shuffle, shuffle_down, shuffle_up };

// Waits for all lanes in `mask` and returns the result for this one.
std::uint64_t exchange(Exchange kind, unsigned int mask, std::uint64_t own, int argument);

template <class T>
T shuffled(Exchange kind, unsigned int mask, T own, int argument) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &own, sizeof own);
    bits = exchange(kind, mask, bits, argument);
    std::memcpy(&own, &bits, sizeof own);
    return own;
}

}  // namespace pycc::host

#define threadIdx (pycc::host::place().thread)
#define blockIdx (pycc::host::place().block)
#define blockDim (pycc::host::place().threads)
#define gridDim (pycc::host::place().blocks)

#define __syncthreads() static_cast<void>(pycc::host::barrier(__FILE__, __LINE__, false))
#define __syncthreads_count(counts) pycc::host::barrier(__FILE__, __LINE__, counts)

template <class T>
T __shfl_sync(unsigned int mask, T own, int lane) {
    return pycc::host::shuffled(pycc::host::Exchange::shuffle, mask, own, lane);
}
template <class T>
T __shfl_down_sync(unsigned int mask, T own, int lanes) {
    return pycc::host::shuffled(pycc::host::Exchange::shuffle_down, mask, own, lanes);
}
template <class T>
T __shfl_up_sync(unsigned int mask, T own, int lanes) {
    return pycc::host::shuffled(pycc::host::Exchange::shuffle_up, mask, own, lanes);
}
inline unsigned int __ballot_sync(unsigned int mask, bool vote) {
    using pycc::host::Exchange;
    return static_cast<unsigned int>(pycc::host::exchange(Exchange::ballot, mask, vote, 0));
}
inline unsigned int __match_any_sync(unsigned int mask, unsigned int own) {
    using pycc::host::Exchange;
    return static_cast<unsigned int>(pycc::host::exchange(Exchange::match_any, mask, own, 0));
}

inline int __popc(unsigned int bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}
// One thread runs at a time.
template <class T>
T atomicOr(T* at, T bits) {
    const T before = *at;
    *at = before | bits;
    return before;
}
template <class T>
T atomicAdd(T* at, T more) {
    const T before = *at;
    *at = before + more;
    return before;
}
