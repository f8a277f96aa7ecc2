// config.json, and everything that is computed from it before a weight is read: rank counts, the list of tensors, the memory plan.
#include "fuzz/fuzz_support.h"
#include "model/config.h"
#include "model/partition.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::accepts([&] {
    const ModelConfig config = parse_model_config(fuzz::text_of(data, size), "config.json");
    for (const TensorSpec& spec : tensor_specs(config)) {
      fuzz::expect(spec.rows > 0 && spec.cols > 0 && spec.pieces > 0, "an empty tensor");
      fuzz::expect(checked_count(spec.source_shape) >= spec.rows * spec.cols, "a tensor larger than its source");
    }
    for (const int ranks : legal_rank_counts(config)) {
      check_rank_count(config, ranks);
      RuntimeOptions options;
      options.context = config.max_position;
      options.slots = 256;
      options.batch = 65536;
      options.kv_type = KvType::f32;
      for (int rank = 0; rank<ranks; rank += ranks - 1> 0 ? ranks - 1 : 1) {
        const MemoryPlan plan = plan_memory(config, options, rank, ranks, 0, int64_t{16} << 30);
        fuzz::expect(plan.kv_cache >= 0 && plan.delta_state >= 0 && plan.workspace >= 0 && plan.total() > 0, "a negative plan");
      }
    }
  });
  return 0;
}
