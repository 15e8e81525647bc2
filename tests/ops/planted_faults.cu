// Kernels with one fault each, which the emulator of csrc/core/cuda_host.h must find, and the same
// kernels without. The argument names the kernel; prints "right", "wrong" or the error, and what the
// kernel without a fault gives after it.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "cuda.cuh"

namespace {

constexpr int kThreads = 64;

enum class Fault { none, no_barrier, overflow, mask_without_itself, mask_of_gone, divergent };

// Reverses the numbers of a block through shared memory and adds to each the sum of its warp.
template <Fault kFault>
__global__ void reverse_kernel(int* out /* [blocks,kThreads] */) {
    using namespace pycc;
    PYCC_SHARED(tile, int[kThreads]);
    const int thread = thread_of_block(), lane = lane_of_warp();
    const bool first_lanes = lane < 16;
    int* const own = tile + thread;
    own[kFault == Fault::overflow ? 1 : 0] = thread;
    if constexpr (kFault == Fault::divergent) {
        if (first_lanes) __syncthreads();
    } else if constexpr (kFault != Fault::no_barrier) {
        __syncthreads();
    }
    if constexpr (kFault == Fault::mask_of_gone) {
        if (!first_lanes) return;
    }
    unsigned int mask = kAllLanes;
    if constexpr (kFault == Fault::mask_without_itself) mask = 0xFFFFU;
    int sum = thread;
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(mask, sum, half);
    sum = __shfl_sync(kAllLanes, sum, 0);
    out[static_cast<int>(blockIdx.x) * kThreads + thread] = tile[kThreads - 1 - thread] + sum;
}

template <Fault kFault>
std::string run() {
    constexpr int kBlocks = 3, kSum = 31 * 32 / 2;
    int out[kBlocks * kThreads] = {};
    pycc::host::emulation.seed = 7;
    try {
        pycc::launch("reverse", reverse_kernel<kFault>, kBlocks, kThreads, 0, nullptr, &out[0]);
    } catch (const std::exception& error) {
        return error.what();
    }
    for (int i = 0; i < kBlocks * kThreads; ++i) {
        const int thread = i % kThreads, warp = thread / pycc::kWarp;
        if (out[i] != kThreads - 1 - thread + kSum + 32 * 32 * warp) return "wrong";
    }
    return "right";
}

}  // namespace

int main(int, char** arguments) {
    const std::string name = arguments[1];
    std::string result = "no such kernel";
    if (name == "none") result = run<Fault::none>();
    if (name == "no_barrier") result = run<Fault::no_barrier>();
    if (name == "overflow") result = run<Fault::overflow>();
    if (name == "mask_without_itself") result = run<Fault::mask_without_itself>();
    if (name == "mask_of_gone") result = run<Fault::mask_of_gone>();
    if (name == "divergent") result = run<Fault::divergent>();
    std::printf("%s, then %s\n", result.c_str(), run<Fault::none>().c_str());
    return 0;
}
