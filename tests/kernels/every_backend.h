// The fixture of tests that run on every backend: the cpu backend on each instruction set, CUDA on a device where there is one, and
// the CUDA kernels under emulation everywhere. Beside it stand the generic path of the host and the reference.
#pragma once

#include <optional>

#include "kernels/cpu/isa.h"
#include "tests/kernels/kernel_cases.h"
#include "tests/kernels/staging_backend.h"

namespace pq {

inline std::vector<std::string> every_backend() {
  std::vector<std::string> names;
  for (const Isa isa : kIsas) names.emplace_back(isa_name(isa));
  names.insert(names.end(), {"cuda", "cuda-emulated"});
  return names;
}

inline std::string backend_test_name(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class EveryBackendTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    isa_ = try_parse_isa(GetParam());
    if (isa_ && !isa_supported(*isa_)) GTEST_SKIP() << "this machine has no " << GetParam();
    backend_ = isa_ ? make_cpu_backend(*isa_) : make_test_backend(GetParam());
    if (!backend_) GTEST_SKIP() << "this machine has no GPU";
    generic_ = make_cpu_backend(Isa::generic);
    reference_ = make_backend("reference");
  }
  bool host() const { return isa_.has_value(); }

  std::optional<Isa> isa_;  // of a backend of the host
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> generic_;
  std::unique_ptr<Backend> reference_;
};

}  // namespace pq
