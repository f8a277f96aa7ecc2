// What a user reads where a GPU cannot be used, for answers of the runtime that no test machine gives.
#include "kernels/device_problem.h"

#include <gtest/gtest.h>

namespace pq {
namespace {

TEST(DeviceProblem, AnOldDriverIsNamedWithWhatIsNeeded) {
  EXPECT_EQ(no_device_text(kCudaInsufficientDriver, "driver too old", 12040, 13000),
            "the NVIDIA driver is of CUDA 12.4, but pq needs CUDA 13.0: install driver 580 or newer");
  EXPECT_EQ(no_device_text(kCudaInsufficientDriver, "driver too old", 11080, 12060),
            "the NVIDIA driver is of CUDA 11.8, but pq needs CUDA 12.6: install driver 525 or newer");
  EXPECT_EQ(no_device_text(kCudaInsufficientDriver, "driver too old", 13000, 14010),
            "the NVIDIA driver is of CUDA 13.0, but pq needs CUDA 14.1: install a newer driver");
}

TEST(DeviceProblem, NoDriverAndNoDeviceAreToldApart) {
  EXPECT_EQ(no_device_text(kCudaInsufficientDriver, "driver too old", 0, 13000),
            "there is no NVIDIA driver here; pq needs one of CUDA 13.0: install driver 580 or newer");
  EXPECT_EQ(no_device_text(kCudaNoDevice, "no device", 13000, 13000),
            "the driver shows no device (CUDA_VISIBLE_DEVICES may hide it)");
  EXPECT_EQ(no_device_text(46, "all devices busy", 13000, 13000), "all devices busy");
}

TEST(DeviceProblem, ArchitecturesWithoutKernelsAreRefused) {
  EXPECT_EQ(architecture_problem(0, "RTX 3090", 8, 6, 0), "");
  EXPECT_EQ(architecture_problem(0, "H200", 9, 0, 0), "");
  EXPECT_EQ(architecture_problem(1, "Tesla T4", 7, 5, kCudaNoKernelImage),
            "device 1 (Tesla T4) is of compute capability 7.5; pq needs 8.0; run with --device cpu");
  EXPECT_EQ(architecture_problem(0, "B200", 10, 0, kCudaNoKernelImage),
            "device 0 (B200) is of compute capability 10.0, for which this build has no kernels; build pq with "
            "-DCMAKE_CUDA_ARCHITECTURES=100, or run with --device cpu");
  // A device that came after the driver and this build: the PTX is there, but the driver cannot translate it.
  EXPECT_EQ(architecture_problem(0, "B200", 10, 0, kCudaUnsupportedPtx),
            "device 0 (B200) is of compute capability 10.0, for which this build has PTX alone, of a newer CUDA than the NVIDIA "
            "driver; install a newer driver, build pq with -DCMAKE_CUDA_ARCHITECTURES=100, or run with --device cpu");
  EXPECT_EQ(architecture_problem(0, "V100", 7, 0, kCudaUnsupportedPtx),
            "device 0 (V100) is of compute capability 7.0; pq needs 8.0; run with --device cpu");
}

}  // namespace
}  // namespace pq
