// Where a rank gets its weights from: a store on disk, or a checkpoint that is quantised while it is read. Both yield the same
// bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "store/tensor_spec.h"

namespace pq {

// The representation of one tensor as the source will deliver it.
struct WeightInfo {
  WeightFormat format = WeightFormat::f32;  // matrices: any; other tensors: f32 (whatever their dtype on disk)
  int bits = 0;                             // polar: 2..8
  bool has_zeros = false;                   // int4 asymmetric
  const Codebook* codebook = nullptr;       // polar; owned by the source
  int64_t bytes = 0;                        // of all pieces, all planes
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // Throws ErrorKind::input naming the tensor when it is absent or of another shape.
  virtual WeightInfo info(const TensorSpec& spec) const = 0;

  // Loads pieces [first, first + count) in the layout of pq::Matrix into host memory: split rows concatenates rows, split cols
  // gives [count units][rows][...]. Planes absent from the format are null. Sizes are those of Matrix::data_bytes and scale_bytes.
  virtual void load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) = 0;

  // As load, into memory of the device that the source was made for, on its stream: host memory takes no part. False, with nothing
  // done, where the source makes this tensor on the host.
  virtual bool try_load_on_device(const TensorSpec&, int64_t, int64_t, void*, uint16_t*, uint16_t*) { return false; }

  // Memory of a device that a load takes while it runs, at most; 0: host memory alone.
  virtual int64_t loading_bytes() const { return 0; }

  // One line: "store x (pq5, 5.125 bits per weight)" or "checkpoint x, quantised while loading".
  virtual std::string description() const = 0;
};

}  // namespace pq
