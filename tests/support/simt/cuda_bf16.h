// Stands in for cuda_bf16.h under emulation; kernels/cuda reads bfloat16 as bits.
#pragma once

#include "tests/support/simt/cuda_runtime.h"
