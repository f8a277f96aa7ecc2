// Weights of any geometry made in memory: random codes and small random vectors, so that every size can be measured without a
// checkpoint. The values mean nothing; their bytes, formats and magnitudes are those of a real model.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/device_measure.h"
#include "store/weight_source.h"

namespace pq {

// Every large matrix has one format. Deterministic: a piece depends on the tensor's name and its index only.
class SyntheticSource : public WeightSource {
 public:
  // format polar with bits 2..8, or bf16. Throws ErrorKind::usage otherwise. device: of the backend that the weights are for, when
  // it has one, outlives the source; null: everything is made on the host.
  SyntheticSource(WeightFormat format, int bits, DeviceMeasure* device = nullptr);
  WeightInfo info(const TensorSpec& spec) const override;
  void load(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales, uint16_t* zeros) override;
  // The bytes of load; false without a device.
  bool try_load_on_device(const TensorSpec& spec, int64_t first, int64_t count, void* data, uint16_t* scales,
                          uint16_t* zeros) override;
  std::string description() const override;

 private:
  WeightFormat format_;
  int bits_;
  DeviceMeasure* device_;
  Codebook codebook_;
};

}  // namespace pq
