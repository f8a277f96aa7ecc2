// pq-inspect: what a store, a Hugging Face directory or a published PolarQuant checkpoint holds, and with --verify whether all of
// it is what it was. Reads no weights without --verify. The checks stand in store/verify.h.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "app/model_loading.h"
#include "app/options.h"
#include "base/activity.h"
#include "base/error.h"
#include "comm/session.h"
#include "kernels/backend.h"
#include "model/config.h"
#include "model/partition.h"
#include "store/checkpoint.h"
#include "store/quantizer.h"
#include "store/store_reader.h"
#include "store/verify.h"

namespace pq {
namespace {

using Json = nlohmann::ordered_json;

struct InspectOptions {
  std::string model;
  bool verify = false;
  bool tensors = false;
  bool json = false;
  int threads = 0;
  JobOptions job;
};

// What stands in one line of the tables.
struct Row {
  std::string name;
  std::string format;
  int64_t tensors = 0;
  int64_t weights = 0;
  int64_t bytes = 0;
  double squared_error = 0;
  double squared_norm = 0;
};

// The text to print instead of running, if any.
std::optional<std::string> parse(int argc, char** argv, InspectOptions* o) {
  const auto app = make_command_line("pq-inspect", "MODEL [FLAGS]      mpirun -np N pq-inspect MODEL --verify",
                                     "What a store or a checkpoint holds. Every name, size and header is checked.");
  app->option_defaults()->group("Directory");
  app->add_option("MODEL", o->model, "store, Hugging Face directory or published PolarQuant checkpoint")->type_name("")->required();
  app->option_defaults()->group("Other");
  app->add_flag("--verify", o->verify, "read all of it: every checksum of a store; codes, norms and weights of a checkpoint");
  app->add_flag("--tensors", o->tensors, "a line for each tensor");
  app->add_option("-t,--threads", o->threads, "of a rank [its CPUs]")->type_name("N")->check(CLI::Range(1, 1024));
  add_job_flags(app.get(), &o->job);
  app->add_flag("--json", o->json, "JSON on standard output");
  return parse_command_line(app.get(), argc, argv);
}

// "layers.3.mlp.up_proj.weight" is of the class "layers.*.mlp.up_proj.weight".
std::string class_of(const std::string& name) {
  std::string result;
  for (size_t at = 0; at < name.size();) {
    const size_t end = std::min(name.find('.', at), name.size());
    const std::string part = name.substr(at, end - at);
    const bool number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    result += (result.empty() ? "" : ".") + (number ? "*" : part);
    at = end + 1;
  }
  return result;
}

std::vector<Row> sum_classes(const std::vector<Row>& tensors) {
  std::map<std::pair<std::string, std::string>, Row> sums;
  for (const Row& tensor : tensors) {
    Row& sum = sums[{class_of(tensor.name), tensor.format}];
    sum.name = class_of(tensor.name);
    sum.format = tensor.format;
    sum.tensors += 1;
    sum.weights += tensor.weights;
    sum.bytes += tensor.bytes;
    sum.squared_error += tensor.squared_error;
    sum.squared_norm += tensor.squared_norm;
  }
  std::vector<Row> rows;
  rows.reserve(sums.size());
  for (auto& [key, row] : sums) rows.push_back(std::move(row));
  return rows;
}

Json rows_json(const std::vector<Row>& rows) {
  Json list = Json::array();
  for (const Row& r : rows) {
    Json row = {{"name", r.name}, {"format", r.format}, {"tensors", r.tensors}, {"weights", r.weights}, {"bytes", r.bytes}};
    row["relative_error"] = r.squared_norm > 0 ? Json(r.squared_error / r.squared_norm) : Json();
    list.push_back(std::move(row));
  }
  return list;
}

Json inspect_store(const StoreReader& store, std::vector<Row>* tensors) {
  const Manifest& manifest = store.manifest();
  int64_t bytes = 0;
  for (const ShardRecord& shard : manifest.shards) bytes += shard.bytes;
  std::string codebooks, files;
  for (const auto& [key, codebook] : manifest.codebooks) codebooks += (codebooks.empty() ? "" : " ") + key;
  for (const auto& [name, file] : manifest.files) files += (files.empty() ? "" : " ") + name;
  for (const TensorRecord& record : manifest.tensors) {
    const bool shared = !record.same_as.empty();
    tensors->push_back({record.spec.name, shared ? "same as " + record.same_as : encoding_name(record.encoding), 1,
                        record.spec.rows * record.spec.cols, shared ? 0 : tensor_bytes(record.spec, record.encoding),
                        record.squared_error, record.squared_norm});
  }
  const bool framed = std::all_of(manifest.shards.begin(), manifest.shards.end(), [](const ShardRecord& s) { return s.frame; });
  return {{"kind", "store"},
          {"version", fmt::format("{}.{}", kStoreMajor, manifest.minor)},
          {"source", manifest.source},
          {"recipe", manifest.recipe},
          {"fingerprint", manifest.fingerprint},
          {"codebooks", codebooks},
          {"copied_files", files},
          {"shards", manifest.shards.size()},
          {"shard_bytes", bytes},
          {"bits_per_weight", store.bits_per_weight()},
          {"checksums", framed ? "manifest, copied files, shards in full" : "manifest, copied files, weights (version 1.0)"}};
}

Json inspect_checkpoint(const Checkpoint& checkpoint, std::vector<Row>* tensors) {
  const SafetensorsDirectory& files = checkpoint.files();
  int64_t bytes = 0;
  for (const auto& file : files.files()) bytes += file->size();
  const std::string coded = ".codes";
  std::set<std::string> parts;  // of coded tensors
  for (const auto& [name, at] : files.tensors()) {
    if (!name.ends_with(coded)) continue;
    const std::string base = name.substr(0, name.size() - coded.size());
    const CodedTensor tensor = open_coded_tensor(files, base);
    tensors->push_back({base, fmt::format("pq{} codes", tensor.bits), 1, tensor.rows * tensor.blocks * kBlock,
                        tensor.codes.entry->bytes + tensor.norms.entry->bytes});
    for (const char* suffix : {".codes", ".norms", ".ct", ".ct_scaled"}) parts.insert(base + suffix);
  }
  for (const auto& [name, at] : files.tensors())
    if (parts.count(name) == 0)
      tensors->push_back({name, dtype_name(at.entry->dtype), 1, checked_count(at.entry->shape), at.entry->bytes});
  const char* kind = checkpoint.format() == PublishedFormat::none ? "Hugging Face checkpoint"
                     : checkpoint.format() == PublishedFormat::f1 ? "published PolarQuant checkpoint, F1"
                                                                  : "published PolarQuant checkpoint, F2";
  return {{"kind", kind},
          {"fingerprint", files.fingerprint()},
          {"files", files.files().size()},
          {"file_bytes", bytes},
          {"vision_tensors", checkpoint.skipped_vision()},
          {"mtp_tensors", checkpoint.skipped_mtp()},
          {"checksums", "none in this format"}};
}

void print_rows(const std::vector<Row>& rows, const char* what) {
  size_t width = 8;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  std::string text =
      fmt::format("\n{:<{}} {:>10} {:>8} {:>14} {:>12} {:>9}\n", what, width, "format", "tensors", "weights", "bytes", "error");
  for (const Row& r : rows)
    text += fmt::format("{:<{}} {:>10} {:>8} {:>14} {:>12} {:>9}\n", r.name, width, r.format, r.tensors, r.weights, r.bytes,
                        r.squared_norm > 0 ? fmt::format("{:.6f}", r.squared_error / r.squared_norm) : "-");
  std::fputs(text.c_str(), stdout);
}

void print_text(const Json& root, const std::vector<Row>& classes, const std::vector<Row>& tensors, const InspectOptions& o) {
  for (const auto& [key, value] : root.items()) {
    if (value.is_array()) continue;
    std::string label = key;
    std::replace(label.begin(), label.end(), '_', ' ');
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    std::fputs(fmt::format("{:<16} {}\n", label, text).c_str(), stdout);
  }
  print_rows(classes, "class");
  if (o.tensors) print_rows(tensors, "tensor");
}

int run(Session& session, int argc, char** argv) {
  InspectOptions o;
  std::optional<std::string> text;
  session.agree("the command line", [&] { text = parse(argc, argv, &o); });
  if (text) {
    if (session.rank() == 0) std::fputs(text->c_str(), stdout);
    return 0;
  }
  session.configure(o.job);
  Json root = {{"model_path", o.model}};
  std::vector<Row> tensors;
  std::unique_ptr<StoreReader> store;
  std::unique_ptr<Checkpoint> checkpoint;
  enter_phase(Phase::load);
  session.agree("opening the model", [&] {
    if (!is_directory(o.model)) throw Error(ErrorKind::input, o.model + " is not a directory; name a store or a checkpoint");
    const bool stored = is_store(o.model) || path_exists(o.model + "/job.json");
    if (stored) store = std::make_unique<StoreReader>(o.model);
    const ModelConfig config = load_model_config(o.model);
    const std::vector<TensorSpec> specs = tensor_specs(config);
    if (stored)
      for (const TensorSpec& spec : specs) store->info(spec);
    else
      checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(o.model, specs));
    root["model"] = model_text(config);
    root.update(stored ? inspect_store(*store, &tensors) : inspect_checkpoint(*checkpoint, &tensors));
  });

  const auto start = std::chrono::steady_clock::now();
  VerifyReport report;
  if (o.verify) {
    session.agree("verifying", [&] {
      const int rank = session.rank(), ranks = session.ranks();
      const int threads = o.threads > 0 ? o.threads : std::max<int>(1, static_cast<int>(session.cpus().size()));
      report = store ? verify_store(o.model, store->manifest(), rank, ranks, threads)
                     : verify_checkpoint(checkpoint->files(), rank, ranks, threads);
      throw_damage(report);
    });
  }
  const int64_t mine[2] = {report.items, report.bytes};
  std::vector<int64_t> all(2 * static_cast<size_t>(session.ranks()));
  session.comm().all_gather(mine, sizeof mine, all.data());
  if (session.rank() != 0) return 0;
  if (o.verify) {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    int64_t items = 0, bytes = 0;
    for (size_t i = 0; i < all.size(); i += 2) items += all[i], bytes += all[i + 1];
    root[store ? "verified_pieces" : "verified_tensors"] = items;
    root["verified_bytes"] = bytes;
    root["verify_seconds"] = std::round(seconds * 1000) / 1000;
  }
  const std::vector<Row> classes = sum_classes(tensors);
  if (o.json) {
    root["classes"] = rows_json(classes);
    if (o.tensors) root["tensors"] = rows_json(tensors);
    std::fputs((root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n").c_str(), stdout);
  } else {
    print_text(root, classes, tensors, o);
  }
  return 0;
}

}  // namespace
}  // namespace pq

int main(int argc, char** argv) {
  return pq::run_program("pq-inspect", argc, argv, [&](pq::Session& session) { return pq::run(session, argc, argv); });
}
