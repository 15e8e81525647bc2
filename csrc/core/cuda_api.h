// The CUDA runtime, or its emulation on the CPU (PYCC_CUDA=HOST).
#pragma once

#if defined(PYCC_CUDA_HOST)
#include "cuda_host.h"
#else
#include <cuda_runtime.h>
#endif
