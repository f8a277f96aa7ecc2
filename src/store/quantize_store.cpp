// Planning, writing, collecting and reporting of a store job.
#include "store/quantize_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/activity.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/process.h"
#include "base/signals.h"
#include "base/strict_json.h"
#include "base/utf8.h"
#include "store/checkpoint.h"
#include "store/quantizer.h"
#include "store/shard_store.h"
#include "store/source_record.h"
#include "store/store_reader.h"

namespace pq {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJobName = "job.json";
// Made by a rank that fails, so that the others stop at their next chunk and do not work on for minutes.
constexpr const char* kFailedName = "job.failed";
// A recipe lists every rule of its policy.
constexpr size_t kShownRecipe = 400;
constexpr size_t kWorstTensors = 10;
constexpr const char* kCopiedFiles[] = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
    "vocab.json",  "merges.txt"};

// Everything the ranks derive alike from source, recipe and specs.
struct Plan {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Quantizer> quantizer;
  std::vector<TensorRecord> records;  // in the order of the specs; planes not yet placed
  std::map<std::string, Codebook> codebooks;
  std::vector<int64_t> shard_weights;
  std::string fingerprint;
  std::vector<std::string> warnings;
};

// Thrown by a rank that stops because another one failed; never leaves this file.
struct Stopped {};

std::string note_name(int64_t shard) { return fmt::format("shard-{:05}.json", shard); }

Plan make_plan(const StoreJob& job, Backend& backend) {
  Plan plan;
  plan.checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(job.source, job.specs));
  plan.quantizer = std::make_unique<Quantizer>(*plan.checkpoint, job.recipe, backend);
  job.recipe.policy.check_rules(job.specs);
  const std::string config = read_text_file(job.source + "/config.json", kMaxCopiedBytes);
  std::string identity =
      fmt::format("{} {}.{}\n{}\n{}\n{}\n", kStoreFormat, kStoreMajor, kStoreMinor, job.recipe.text(),
                  plan.checkpoint->files().fingerprint(), hex64(xxh3(config.data(), static_cast<int64_t>(config.size()))));
  std::map<std::string, std::string> first_of;
  for (const TensorSpec& spec : job.specs) {
    const TensorPlan tensor = plan.quantizer->plan(spec);
    if (!tensor.warning.empty()) plan.warnings.push_back(tensor.warning);
    TensorRecord record;
    record.spec = spec;
    record.encoding = tensor.encoding;
    if (tensor.encoding.format == WeightFormat::polar) {
      record.codebook = codebook_key(*tensor.codebook);
      plan.codebooks.emplace(record.codebook, *tensor.codebook);
    }
    const std::string content = fmt::format("{} {} {} {} {} {} {} {} {} {}", spec.source, spec.source_row, spec.rows, spec.cols,
                                            static_cast<int>(spec.split), spec.pieces, spec.matrix, encoding_name(tensor.encoding),
                                            record.codebook, tensor.through_bits);
    identity += fmt::format("{} {} {}\n", spec.name, spec.shard, content);
    if (const auto [it, fresh] = first_of.emplace(content, spec.name); !fresh) record.same_as = it->second;
    if (spec.shard >= static_cast<int64_t>(plan.shard_weights.size()))
      plan.shard_weights.resize(static_cast<size_t>(spec.shard) + 1);
    if (record.same_as.empty()) plan.shard_weights[static_cast<size_t>(spec.shard)] += spec.rows * spec.cols;
    plan.records.push_back(std::move(record));
  }
  plan.fingerprint = hex64(xxh3(identity.data(), static_cast<int64_t>(identity.size())));
  return plan;
}

void remove_if_present(const std::string& path) {
  std::error_code code;
  fs::remove(path, code);
  if (code) throw Error(ErrorKind::io, fmt::format("cannot remove {}: {}", path, code.message()));
}

// Names this job writes: manifest.json, source.json, job.json, job.failed, shard-<digits>.<anything>.
bool is_own_name(const std::string& name) {
  if (name == kManifestName || name == kSourceRecordName || name == kJobName || name == kFailedName) return true;
  if (name.rfind("shard-", 0) != 0) return false;
  const size_t end = name.find_first_not_of("0123456789", 6);
  return end != std::string::npos && end > 6 && name[end] == '.';
}

[[noreturn]] void refuse(const std::string& destination, const std::string& what) {
  throw Error(ErrorKind::usage, fmt::format("{} {}; name another directory, or replace it with --force", destination, what));
}

// Rank 0: makes DST ready. Returns true when it already holds the finished store.
bool prepare_destination(const StoreJob& job, const Plan& plan) {
  const std::string& dst = job.destination;
  std::error_code code;
  if (fs::equivalent(job.source, dst, code)) throw Error(ErrorKind::usage, "source and destination are the same directory: " + dst);
  make_directories(dst);
  for (const auto& entry : fs::directory_iterator(dst))
    if (entry.path().extension() == ".safetensors")
      throw Error(ErrorKind::usage, dst + " holds a checkpoint (" + entry.path().filename().string() + "); name another directory");
  const std::string job_path = dst + "/" + kJobName, manifest_path = dst + "/" + kManifestName;
  if (job.force) {
    std::vector<std::string> own;
    for (const auto& entry : fs::directory_iterator(dst))
      if (is_own_name(entry.path().filename().string())) own.push_back(entry.path().string());
    remove_if_present(manifest_path);
    for (const std::string& path : own) remove_if_present(path);
  } else if (path_exists(manifest_path)) {
    const Manifest manifest = parse_manifest(read_text_file(manifest_path, kMaxManifestBytes), manifest_path);
    if (manifest.fingerprint != plan.fingerprint)
      refuse(dst, fmt::format("holds a store{} made otherwise ({}; {})",
                              manifest.minor == kStoreMinor ? "" : fmt::format(" of version {}.{}", kStoreMajor, manifest.minor),
                              shown(manifest.source), shown(manifest.recipe, kShownRecipe)));
    const StoreReader complete(dst);
    return true;
  } else if (path_exists(job_path)) {
    const nlohmann::json old = parse_strict_json(read_text_file(job_path, kMaxManifestBytes), job_path);
    if (json_string(old, "fingerprint", job_path) != plan.fingerprint)
      refuse(dst, fmt::format("holds an unfinished store made otherwise ({}; {})", shown(json_string(old, "source", job_path)),
                              shown(json_string(old, "recipe", job_path), kShownRecipe)));
  } else if (!fs::is_empty(dst)) {
    refuse(dst, "is not empty and holds no store");
  }
  const nlohmann::ordered_json job_json = {
      {"fingerprint", plan.fingerprint}, {"source", plan.checkpoint->description()}, {"recipe", job.recipe.text()}};
  write_file_atomically(job_path, job_json.dump(1) + "\n");
  remove_if_present(dst + "/" + kFailedName);
  for (const char* name : kCopiedFiles)
    if (const std::string from = job.source + "/" + name; path_exists(from))
      write_file_atomically(dst + "/" + name, read_text_file(from, kMaxCopiedBytes));
  return false;
}

// Whether shard `shard` of this very job is finished. A note that cannot be read counts as none.
bool is_finished(const StoreJob& job, const Plan& plan, int64_t shard) {
  const std::string note_path = job.destination + "/" + note_name(shard), path = job.destination + "/" + shard_file_name(shard);
  if (!path_exists(note_path) || !path_exists(path)) return false;
  try {
    const ShardNote note = parse_shard_note(read_text_file(note_path, kMaxManifestBytes), note_path);
    return note.fingerprint == plan.fingerprint && note.shard.file == shard_file_name(shard) &&
           File::open_read(path).size() == note.shard.bytes;
  } catch (const Error&) {
    return false;
  }
}

// Rank 0: that finished shards hold the weights the source has now; the fingerprint reads none. Stores of before there was a record
// have none. `finished` as in quantize_store.
void check_source(const StoreJob& job, const Plan& plan, const std::vector<uint8_t>& finished) {
  const std::string path = job.destination + "/" + kSourceRecordName;
  if (path_exists(path)) {
    std::vector<SafetensorsLocation> tensors;
    for (const TensorRecord& record : plan.records) {
      if (!finished.back() && !finished[static_cast<size_t>(record.spec.shard)]) continue;
      const SourceTensor& tensor = plan.checkpoint->tensor(record.spec);
      if (tensor.bits == 0)
        tensors.push_back(tensor.plain);
      else
        tensors.insert(tensors.end(), {tensor.coded.codes, tensor.coded.norms});
    }
    check_source_record(tensors, read_text_file(path, kMaxManifestBytes), path);
  }
  if (!finished.back()) write_file_atomically(path, source_record_text(plan.checkpoint->files()));
}

void write_shard(const StoreJob& job, const Plan& plan, int64_t shard, const std::function<void(int64_t weights)>& progress) {
  ShardNote note;
  note.fingerprint = plan.fingerprint;
  for (const TensorRecord& record : plan.records) {
    if (record.spec.shard != shard) continue;
    note.tensors.push_back(record);
    if (!record.codebook.empty()) note.codebooks.emplace(record.codebook, plan.codebooks.at(record.codebook));
  }
  ShardWriter writer(job.destination + "/" + shard_file_name(shard) + ".tmp", shard, &note);
  for (size_t i = 0; i < note.tensors.size(); ++i) {
    TensorRecord& record = note.tensors[i];
    if (!record.same_as.empty()) continue;
    const int64_t bytes_a_weight_row = plane_row_bytes(record.encoding, piece_cols(record.spec), 0);
    writer.begin_tensor(i);
    EncodeError error;
    Xxh3Stream source_hash;
    plan.quantizer->quantize(
        record.spec, 0, record.spec.pieces,
        [&](int plane, int64_t piece, int64_t offset, const uint8_t* data, int64_t bytes) {
          writer.write(plane, piece, offset, data, bytes);
          if (plane == 0) progress(bytes / bytes_a_weight_row * piece_cols(record.spec));
        },
        record.spec.matrix ? &error : nullptr, &source_hash);
    record.squared_error = error.squared_error;
    record.squared_norm = error.squared_norm;
    record.source_hash = source_hash.digest();
    writer.end_tensor();
  }
  writer.publish(job.destination);
  write_file_atomically(job.destination + "/" + note_name(shard), shard_note_text(note));
}

// The unfinished shards that `owner` gives to `rank`. Returns how many are left after a signal that asks for a stop.
int64_t write_shards(const StoreJob& job, const Plan& plan, const std::vector<int>& owner, const std::vector<uint8_t>& finished,
                     int rank) {
  const std::string failed = job.destination + "/" + kFailedName;
  std::vector<int64_t> mine;
  int64_t total = 0, done = 0, written = 0;
  for (size_t shard = 0; shard < owner.size(); ++shard) {
    if (owner[shard] != rank || finished[shard]) continue;
    mine.push_back(static_cast<int64_t>(shard));
    total += plan.shard_weights[shard];
  }
  enter_phase(Phase::quantise);
  std::unique_ptr<ProgressBar> bar;
  if (rank == 0) bar = std::make_unique<ProgressBar>("quantise", total / 1'000'000, "M weights of rank 0");
  try {
    for (const int64_t shard : mine) {
      if (stop_signal() != 0) break;
      enter_layer(shard);
      write_shard(job, plan, shard, [&](int64_t weights) {
        beat();
        if (path_exists(failed)) throw Stopped{};
        done += weights;
        if (bar) bar->set(done / 1'000'000);
      });
      ++written;
    }
  } catch (const Stopped&) {
  } catch (...) {
    std::ofstream flag(failed);  // best effort: without it the others only stop later
    throw;
  }
  return static_cast<int64_t>(mine.size()) - written;
}

struct Left {
  int64_t shards;
  int64_t signal;
};

// Sums the shards that are left over ranks; the signal is that of any rank.
Left gather_left(Communicator& comm, int64_t shards) {
  const Left mine{shards, stop_signal()};
  std::vector<Left> all(static_cast<size_t>(comm.size()));
  comm.all_gather(&mine, sizeof mine, all.data());
  Left sum{};
  for (const Left& left : all) sum = {sum.shards + left.shards, std::max(sum.signal, left.signal)};
  return sum;
}

// Every rank's text on rank 0, in rank order; nothing elsewhere.
std::vector<std::string> gather_texts(Communicator& comm, const std::string& text) {
  int64_t length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(static_cast<size_t>(comm.size()));
  comm.all_gather(&length, sizeof length, lengths.data());
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::string padded = text;
  padded.resize(static_cast<size_t>(longest));
  std::string all(comm.rank() == 0 ? static_cast<size_t>(longest * comm.size()) : 0, '\0');
  comm.gather(padded.data(), longest, comm.rank() == 0 ? all.data() : nullptr);
  std::vector<std::string> texts;
  if (comm.rank() == 0)
    for (int rank = 0; rank < comm.size(); ++rank)
      texts.push_back(all.substr(static_cast<size_t>(rank * longest), static_cast<size_t>(lengths[static_cast<size_t>(rank)])));
  return texts;
}

// Rank 0: the manifest from the notes of all shards, then the notes go.
void write_manifest(const StoreJob& job, const Plan& plan, const std::vector<std::string>& notes) {
  Manifest manifest;
  manifest.recipe = job.recipe.text();
  manifest.source = fmt::format("{}, {} shards",
                                plan.checkpoint->format() == PublishedFormat::none ? "Hugging Face safetensors"
                                : plan.checkpoint->format() == PublishedFormat::f1 ? "published PolarQuant F1"
                                                                                   : "published PolarQuant F2",
                                plan.checkpoint->files().files().size());
  manifest.fingerprint = plan.fingerprint;
  manifest.codebooks = plan.codebooks;
  for (const char* name : kCopiedFiles) {
    const std::string path = job.destination + "/" + name;
    if (!path_exists(path)) continue;
    const std::string text = read_text_file(path, kMaxCopiedBytes);
    manifest.files[name] = {static_cast<int64_t>(text.size()), xxh3(text.data(), static_cast<int64_t>(text.size()))};
  }
  manifest.shards.resize(plan.shard_weights.size());
  std::vector<std::vector<TensorRecord>> tensors(plan.shard_weights.size());
  for (size_t shard = 0; shard < notes.size(); ++shard) {
    ShardNote note = parse_shard_note(notes[shard], note_name(static_cast<int64_t>(shard)));
    manifest.shards[shard] = note.shard;
    tensors[shard] = std::move(note.tensors);
  }
  for (std::vector<TensorRecord>& part : tensors)
    for (TensorRecord& record : part) manifest.tensors.push_back(std::move(record));
  const std::string text = manifest_text(manifest);
  const std::string path = job.destination + "/" + kManifestName;
  parse_manifest(text, path);
  write_file_atomically(path, text);
}

void remove_notes(const StoreJob& job, const Plan& plan) {
  for (size_t shard = 0; shard < plan.shard_weights.size(); ++shard)
    remove_if_present(job.destination + "/" + note_name(static_cast<int64_t>(shard)));
  remove_if_present(job.destination + "/" + kJobName);
}

StoreReport make_report(const Manifest& manifest) {
  StoreReport report;
  report.shards = static_cast<int64_t>(manifest.shards.size());
  report.source = manifest.source;
  report.recipe = manifest.recipe;
  for (const ShardRecord& shard : manifest.shards) report.store_bytes += shard.bytes;
  std::map<std::pair<std::string, std::string>, ClassReport> classes;
  for (const TensorRecord& record : manifest.tensors) {
    if (!record.spec.matrix || !record.same_as.empty()) continue;
    ClassReport tensor{record.spec.name,
                       encoding_name(record.encoding),
                       record.spec.rows * record.spec.cols,
                       tensor_bytes(record.spec, record.encoding),
                       record.squared_error,
                       record.squared_norm};
    report.matrix_weights += tensor.weights;
    report.matrix_bytes += tensor.bytes;
    ClassReport& sum = classes[{record.spec.tensor_class, tensor.format}];
    sum.name = record.spec.tensor_class;
    sum.format = tensor.format;
    sum.weights += tensor.weights;
    sum.bytes += tensor.bytes;
    sum.squared_error += tensor.squared_error;
    sum.squared_norm += tensor.squared_norm;
    report.worst.push_back(std::move(tensor));
  }
  for (auto& [key, value] : classes) report.classes.push_back(std::move(value));
  std::stable_sort(report.worst.begin(), report.worst.end(),
                   [](const ClassReport& a, const ClassReport& b) { return a.relative_error() > b.relative_error(); });
  if (report.worst.size() > kWorstTensors) report.worst.resize(kWorstTensors);
  return report;
}

}  // namespace

std::vector<int> assign_shards(const std::vector<int64_t>& work, int ranks) {
  std::vector<size_t> order(work.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return work[a] > work[b]; });
  std::vector<int64_t> load(static_cast<size_t>(ranks), 0);
  std::vector<int> owner(work.size(), 0);
  for (const size_t shard : order) {
    const size_t rank = static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    owner[shard] = static_cast<int>(rank);
    load[rank] += work[shard];
  }
  return owner;
}

StoreReport quantize_store(const StoreJob& job, Backend& backend, Communicator& comm, const Agree& agree) {
  const auto start = std::chrono::steady_clock::now();
  const StopModeScope mode(StopMode::finish);
  Plan plan;
  agree("open the source", [&] { plan = make_plan(job, backend); });

  // finished[shards] says whether the whole store is complete.
  std::vector<uint8_t> finished(plan.shard_weights.size() + 1, 0);
  agree("prepare the destination", [&] {
    if (comm.rank() != 0) return;
    finished.back() = prepare_destination(job, plan);
    for (size_t shard = 0; shard + 1 < finished.size() && !finished.back(); ++shard)
      finished[shard] = is_finished(job, plan, static_cast<int64_t>(shard));
    check_source(job, plan, finished);
  });
  comm.broadcast(finished.data(), static_cast<int64_t>(finished.size()));
  const bool complete = finished.back() != 0;

  if (!complete) {
    std::vector<int64_t> work = plan.shard_weights;
    for (size_t shard = 0; shard < work.size(); ++shard)
      if (finished[shard]) work[shard] = 0;
    const std::vector<int> owner = assign_shards(work, comm.size());
    int64_t left_here = 0;
    agree("quantise", [&] { left_here = write_shards(job, plan, owner, finished, comm.rank()); });
    if (const Left left = gather_left(comm, left_here); left.shards > 0) {
      StoreReport report;
      report.stopped_by = static_cast<int>(left.signal);
      report.shards = static_cast<int64_t>(plan.shard_weights.size());
      report.shards_kept = report.shards - left.shards;
      return report;
    }
    // Each rank sends the notes of its shards, one after the other in shard order, as one JSON array of texts.
    std::string mine;
    agree("collect", [&] {
      nlohmann::json notes = nlohmann::json::array();
      for (size_t shard = 0; shard < work.size(); ++shard) {
        if (owner[shard] != comm.rank()) continue;
        const std::string path = job.destination + "/" + note_name(static_cast<int64_t>(shard));
        notes.push_back({shard, read_text_file(path, kMaxManifestBytes)});
      }
      mine = notes.dump();
    });
    const std::vector<std::string> texts = gather_texts(comm, mine);
    agree("write the manifest", [&] {
      if (comm.rank() != 0) return;
      std::vector<std::string> notes(work.size());
      for (const std::string& text : texts)
        for (const auto& pair : nlohmann::json::parse(text)) {
          const auto shard = pair.at(0).get<size_t>();
          require(shard < notes.size(), "quantise: a rank sent the note of a shard that there is not");
          notes[shard] = pair.at(1).get<std::string>();
        }
      write_manifest(job, plan, notes);
    });
  }

  const int64_t peak = peak_resident_bytes();
  std::vector<int64_t> peaks(comm.rank() == 0 ? static_cast<size_t>(comm.size()) : 0);
  comm.gather(&peak, sizeof peak, comm.rank() == 0 ? peaks.data() : nullptr);

  StoreReport report;
  agree("report", [&] {
    if (comm.rank() != 0) return;
    remove_notes(job, plan);
    const std::string path = job.destination + "/" + kManifestName;
    report = make_report(parse_manifest(read_text_file(path, kMaxManifestBytes), path));
    report.already_complete = complete;
    report.shards_kept = complete ? report.shards : std::count(finished.begin(), finished.end(), uint8_t{1});
    report.warnings = plan.warnings;
    report.skipped_vision = plan.checkpoint->skipped_vision();
    report.skipped_mtp = plan.checkpoint->skipped_mtp();
    report.peak_rss_bytes = peaks;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  return report;
}

}  // namespace pq
