// Arithmetic that CPU and CUDA share is written once, as functions marked PYCC_HD.
#pragma once

#if defined(__CUDACC__)
#define PYCC_HD __host__ __device__ inline
#else
#define PYCC_HD inline
#endif
