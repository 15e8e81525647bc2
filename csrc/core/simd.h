// One binary for every x86-64: the loader selects the widest clone of a function that the CPU
// supports. The build defines PYCC_TARGET_CLONES if the compiler and the C library support clones.
#pragma once

#if defined(PYCC_TARGET_CLONES)
#define PYCC_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define PYCC_SIMD_NAME "x86-64-v4, x86-64-v3, default"
#else
#define PYCC_SIMD
#define PYCC_SIMD_NAME "default"
#endif
