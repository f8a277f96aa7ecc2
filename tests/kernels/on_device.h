// Operands of kernel tests in the memory of a device, where a test chooses what lies there itself instead of leaving it to
// staging_backend.h.
#pragma once

#include "tests/kernels/kernel_cases.h"

namespace pq {

// A matrix in the memory of a device, in store order or arranged.
struct OnDevice {
  OnDevice(Backend& backend, const OwnedMatrix& owned, bool arranged)
      : data(backend.allocate(owned.matrix.data_bytes())),
        scales(backend.allocate(owned.matrix.scale_bytes())),
        zeros(backend.allocate(2 * static_cast<int64_t>(owned.zeros.size()))),
        matrix(owned.matrix) {
    backend.upload(data.data(), owned.data.data(), data.bytes());
    backend.upload(scales.data(), owned.scales.data(), scales.bytes());
    backend.upload(zeros.data(), owned.zeros.data(), zeros.bytes());
    matrix.data = data.data();
    matrix.scales = scales.as<uint16_t>();
    matrix.zeros = zeros.as<uint16_t>();
    if (arranged) backend.arrange(&matrix);
  }
  Buffer data, scales, zeros;
  Matrix matrix;
};

template <typename T>
std::vector<T> downloaded(Backend& backend, const Buffer& buffer) {
  std::vector<T> host(static_cast<size_t>(buffer.bytes()) / sizeof(T));
  backend.download(host.data(), buffer.data(), buffer.bytes());
  return host;
}

template <typename T>
Buffer uploaded(Backend& backend, const std::vector<T>& host) {
  Buffer buffer = backend.allocate(static_cast<int64_t>(host.size() * sizeof(T)));
  backend.upload(buffer.data(), host.data(), buffer.bytes());
  return buffer;
}

}  // namespace pq
