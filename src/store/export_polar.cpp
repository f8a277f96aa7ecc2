// Planning of files and unpacking of codes for export_polar.h.
#include "store/export_polar.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "kernels/polar.h"
#include "store/quantizer.h"
#include "store/safetensors.h"
#include "store/store_reader.h"

namespace pq {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxBits = 7;
constexpr int64_t kChunkBytes = 32 << 20;

// One tensor of the checkpoint: the parts that the store cut it into, by first row.
struct Group {
  std::string name;  // without ".weight" when coded
  std::vector<int64_t> shape;
  std::vector<const TensorRecord*> parts;
  bool coded = false;
  int64_t rows() const { return shape[0]; }
};

struct OutputFile {
  std::string name;
  std::vector<const Group*> groups;
};

std::string published_name(const TensorSpec& spec, bool coded) {
  std::string name = spec.source.rfind("lm_head.", 0) == 0 ? spec.source : "model." + spec.source;
  const std::string suffix = ".weight";
  return coded ? name.substr(0, name.size() - suffix.size()) : name;
}

std::vector<Group> make_groups(const ExportJob& job, const StoreReader& store) {
  std::map<std::string, const TensorRecord*> records;
  for (const TensorRecord& record : store.manifest().tensors) records[record.spec.name] = &record;
  std::vector<Group> groups;
  std::map<std::string, size_t> by_source;
  for (const TensorSpec& spec : job.specs) {
    store.info(spec);
    const TensorRecord& record = *records.at(spec.name);
    if (!record.same_as.empty()) continue;
    if (spec.matrix && (record.encoding.format != WeightFormat::polar || record.encoding.bits > kMaxBits))
      throw Error(ErrorKind::input, fmt::format("{} is stored as {}; F1 holds pq2 to pq{} only, quantise with --format pq5",
                                                spec.name, encoding_name(record.encoding), kMaxBits));
    const auto [it, fresh] = by_source.emplace(spec.source, groups.size());
    if (fresh) groups.push_back({published_name(spec, spec.matrix), spec.source_shape, {}, spec.matrix});
    Group& group = groups[it->second];
    if (!group.parts.empty() &&
        (group.parts[0]->encoding != record.encoding || group.parts[0]->codebook != record.codebook || group.coded != spec.matrix))
      throw Error(ErrorKind::input, fmt::format("{} and {} are parts of one tensor of the checkpoint and coded differently",
                                                group.parts[0]->spec.name, spec.name));
    group.parts.push_back(&record);
  }
  for (Group& group : groups) {
    std::sort(group.parts.begin(), group.parts.end(),
              [](const TensorRecord* a, const TensorRecord* b) { return a->spec.source_row < b->spec.source_row; });
    int64_t row = 0;
    for (const TensorRecord* part : group.parts) {
      if (part->spec.source_row != row)
        throw Error(ErrorKind::input,
                    fmt::format("the parts of {} in the store do not make it up (a tied head of its own format?)", group.name));
      row += part->spec.rows;
    }
    if (row != group.rows())
      throw Error(ErrorKind::input, fmt::format("the parts of {} in the store do not make it up", group.name));
  }
  return groups;
}

std::vector<SafetensorsWriter::Tensor> tensors_of(const Group& group) {
  if (!group.coded) return {{group.name, group.parts[0]->encoding.dtype, group.shape}};
  const int64_t cols = group.shape[1];
  return {{group.name + ".codes", DType::i8, {group.rows(), cols}},
          {group.name + ".norms", DType::f16, {group.rows(), cols / kBlock}},
          {group.name + ".ct", DType::f32, {int64_t{1} << group.parts[0]->encoding.bits}}};
}

int64_t group_bytes(const Group& group) {
  int64_t bytes = 0;
  for (const SafetensorsWriter::Tensor& tensor : tensors_of(group))
    bytes += checked_count(tensor.shape) * dtype_bytes(tensor.dtype);
  return bytes;
}

std::vector<OutputFile> make_files(const std::vector<Group>& groups, int64_t limit) {
  std::vector<OutputFile> files;
  int64_t bytes = 0;
  for (const Group& group : groups) {
    if (files.empty() || bytes + group_bytes(group) > limit) {
      files.emplace_back();
      bytes = 0;
    }
    files.back().groups.push_back(&group);
    bytes += group_bytes(group);
  }
  for (size_t i = 0; i < files.size(); ++i) files[i].name = fmt::format("model-{:05}-of-{:05}.safetensors", i, files.size());
  return files;
}

// Pieces [first, first + count) of a plane, in the order of the store.
std::vector<uint8_t> read_pieces(const StoreReader& store, const TensorRecord& record, int plane, int64_t first, int64_t count) {
  const int64_t bytes = piece_bytes(record.spec, record.encoding, plane);
  std::vector<uint8_t> data(static_cast<size_t>(count * bytes));
  for (int64_t i = 0; i < count; ++i) store.read_piece(record, plane, first + i, data.data() + i * bytes);
  return data;
}

// Rows of `count` pieces that lie side by side (split cols) or of one piece: codes as one byte each and norms, row-major.
void write_coded_rows(SafetensorsWriter& writer, int64_t index, const StoreReader& store, const TensorRecord& record,
                      int64_t first_piece, int64_t count, int64_t first_row) {
  const int bits = record.encoding.bits;
  const int64_t rows = piece_rows(record.spec), blocks = piece_cols(record.spec) / kBlock, row_blocks = blocks * count;
  const std::vector<uint8_t> codes = read_pieces(store, record, 0, first_piece, count);
  const std::vector<uint8_t> norms = read_pieces(store, record, 1, first_piece, count);
  const int64_t step = std::max<int64_t>(1, kChunkBytes / (row_blocks * kBlock));
  std::vector<uint8_t> out_codes, out_norms;
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t n = std::min(step, rows - row);
    out_codes.resize(static_cast<size_t>(n * row_blocks * kBlock));
    out_norms.resize(static_cast<size_t>(n * row_blocks * 2));
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t p = 0; p < count; ++p) {
        const int64_t from = (p * rows + row + r) * blocks, to = r * row_blocks + p * blocks;
        for (int64_t b = 0; b < blocks; ++b)
          unpack_block(codes.data() + (from + b) * coded_block_bytes(bits), bits, out_codes.data() + (to + b) * kBlock);
        std::copy_n(norms.data() + from * 2, blocks * 2, out_norms.data() + to * 2);
      }
    }
    const int64_t at = (first_row + row) * row_blocks;
    writer.write(index, at * kBlock, out_codes.data(), static_cast<int64_t>(out_codes.size()));
    writer.write(index + 1, at * 2, out_norms.data(), static_cast<int64_t>(out_norms.size()));
  }
}

void write_file(const ExportJob& job, const StoreReader& store, const OutputFile& file) {
  std::vector<SafetensorsWriter::Tensor> tensors;
  for (const Group* group : file.groups)
    for (SafetensorsWriter::Tensor& tensor : tensors_of(*group)) tensors.push_back(std::move(tensor));
  SafetensorsWriter writer(job.destination + "/" + file.name, tensors, {{"format", "pt"}});
  int64_t index = 0;
  for (const Group* group : file.groups) {
    for (const TensorRecord* part : group->parts) {
      const TensorSpec& spec = part->spec;
      if (group->coded) {
        if (spec.split == Split::cols) {
          write_coded_rows(writer, index, store, *part, 0, spec.pieces, spec.source_row);
        } else {
          for (int64_t piece = 0; piece < spec.pieces; ++piece)
            write_coded_rows(writer, index, store, *part, piece, 1, spec.source_row + piece * piece_rows(spec));
        }
      } else {
        const std::vector<uint8_t> data = read_pieces(store, *part, 0, 0, spec.pieces);
        writer.write(index, spec.source_row * plane_row_bytes(part->encoding, spec.cols, 0), data.data(),
                     static_cast<int64_t>(data.size()));
      }
    }
    if (group->coded) {
      const Codebook& codebook = store.manifest().codebooks.at(group->parts[0]->codebook);
      writer.write(index + 2, 0, codebook.centroids.data(), static_cast<int64_t>(codebook.centroids.size() * sizeof(float)));
    }
    index += group->coded ? 3 : 1;
  }
  writer.finish();
}

std::string index_text(const std::vector<OutputFile>& files, int64_t* total) {
  nlohmann::json map = nlohmann::json::object();
  *total = 0;
  for (const OutputFile& file : files) {
    for (const Group* group : file.groups) {
      *total += group_bytes(*group);
      for (const SafetensorsWriter::Tensor& tensor : tensors_of(*group)) map[tensor.name] = file.name;
    }
  }
  const nlohmann::ordered_json root = {{"metadata", {{"total_size", *total}}}, {"weight_map", map}};
  return root.dump(2) + "\n";
}

std::string polar_config_text(const StoreReader& store, const std::vector<Group>& groups) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::object();
  int bits = 0;
  for (const Group& group : groups) {
    if (!group.coded) continue;
    bits = std::max(bits, group.parts[0]->encoding.bits);
    layers[group.name] = {{"in_features", group.shape[1]},         {"out_features", group.rows()},
                          {"in_f_padded", group.shape[1]},         {"n_blocks", group.shape[1] / kBlock},
                          {"bits", group.parts[0]->encoding.bits}, {"block_size", kBlock}};
  }
  const nlohmann::ordered_json root = {
      {"format", "polar_engine_v5"},
      {"base_model", store.manifest().source},
      {"block_size", kBlock},
      {"quantization", fmt::format("PolarQuant Q{}: block-128 norms, Walsh-Hadamard rotation, Lloyd-Max codes", bits)},
      {"bits", bits},
      {"layers", layers},
      {"results", nlohmann::ordered_json::object()},
      {"usage", "w = norms * (ct[codes] / sqrt(128)) @ H per block of 128 inputs; always decode with .ct"}};
  return root.dump(2) + "\n";
}

void prepare(const ExportJob& job) {
  std::error_code code;
  if (fs::equivalent(job.store, job.destination, code))
    throw Error(ErrorKind::usage, "source and destination are the same directory: " + job.destination);
  make_directories(job.destination);
  if (is_store(job.destination)) throw Error(ErrorKind::usage, job.destination + " is a store; name another directory");
  if (!job.force && !fs::is_empty(job.destination))
    throw Error(ErrorKind::usage, job.destination + " is not empty; name another directory, or write into it with --force");
}

}  // namespace

ExportReport export_polarquant(const ExportJob& job, Communicator& comm, const Agree& agree) {
  std::unique_ptr<StoreReader> store;
  std::vector<Group> groups;
  std::vector<OutputFile> files;
  agree("open the store", [&] {
    store = std::make_unique<StoreReader>(job.store);
    groups = make_groups(job, *store);
    files = make_files(groups, job.file_bytes);
  });
  agree("prepare the destination", [&] {
    if (comm.rank() == 0) prepare(job);
  });
  agree("export", [&] {
    for (size_t i = 0; i < files.size(); ++i)
      if (static_cast<int>(i) % comm.size() == comm.rank()) write_file(job, *store, files[i]);
  });
  ExportReport report;
  report.files = static_cast<int64_t>(files.size());
  for (const Group& group : groups) ++(group.coded ? report.coded : report.kept);
  agree("write the index", [&] {
    const std::string index = index_text(files, &report.bytes);
    if (comm.rank() != 0) return;
    for (const auto& [name, file] : store->manifest().files)
      write_file_atomically(job.destination + "/" + name, read_text_file(job.store + "/" + name, kMaxCopiedBytes));
    write_file_atomically(job.destination + "/polar_config.json", polar_config_text(*store, groups));
    write_file_atomically(job.destination + "/model.safetensors.index.json", index);
  });
  return report;
}

}  // namespace pq
