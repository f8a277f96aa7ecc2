// A policy file: rules, what they choose, their canonical text.
#include "fuzz/fuzz_support.h"
#include "store/policy.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::accepts([&] {
    Policy policy;
    policy.add_rules(fuzz::text_of(data, size), "policy");
    std::vector<TensorSpec> specs(2);
    specs[0].name = "layers.3.linear_attn.in_proj_qkv.weight";
    specs[1].name = "embed_tokens.weight";
    for (TensorSpec& spec : specs) {
      spec.matrix = true;
      const Policy::Choice choice = policy.choose(spec.name);
      Encoding again;
      fuzz::expect(try_parse_encoding(encoding_name(choice.encoding), &again) && again == choice.encoding,
                   "a format without a name");
      fuzz::expect(plane_row_bytes(choice.encoding, 512, 0) > 0, "a format without data");
    }
    fuzz::expect(!policy.text().empty(), "a policy without a text");
    policy.check_rules(specs);
  });
  return 0;
}
