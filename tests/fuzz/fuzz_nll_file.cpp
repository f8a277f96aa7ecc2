// A file of likelihoods that pq-ppl --compare-nll reads.
#include "eval/perplexity_report.h"
#include "fuzz/fuzz_support.h"

using namespace pq;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Folder folder;
  const std::string path = folder.write("x.json", fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const NllFile file = read_nll_file(path);
    check_pairable(file, file.protocol, file.tokens_sha256);
  });
  return 0;
}
