// PYCC_HD marks functions with the arithmetic that CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define PYCC_HD __host__ __device__ inline
#else
#define PYCC_HD inline
#endif
