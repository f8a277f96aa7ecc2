// What the files of others may contain at most, in one place: every parser refuses more by name, before it allocates for it. The
// table of src/LIMITS.md says the same in words; a test holds the two together.
#pragma once

#include <cstdint>

namespace pq {

// JSON, whatever the file.
inline constexpr int kMaxJsonDepth = 32;              // objects and arrays inside one another
inline constexpr int64_t kMaxJsonValues = 4'194'304;  // values and keys of a file; a value takes up to 200 bytes of memory

// Safetensors.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the limit of the format's own library
inline constexpr int64_t kMaxSafetensorsIndexBytes = 67'108'864;    // of model.safetensors.index.json
inline constexpr int64_t kMaxSafetensorsTensors = 262'144;          // in one file
inline constexpr int64_t kMaxSafetensorsNameBytes = 1'024;
inline constexpr int64_t kMaxSafetensorsDims = 8;
inline constexpr int64_t kMaxSafetensorsFiles = 10'000;  // in one directory

// config.json, polar_config.json, generation_config.json, the chat template.
inline constexpr int64_t kMaxConfigBytes = 4'194'304;
inline constexpr int64_t kMaxGenerationConfigBytes = 1'048'576;
inline constexpr int64_t kMaxTemplateBytes = 4'194'304;
inline constexpr int64_t kMaxEndTokens = 1'024;     // ids in eos_token_id
inline constexpr int64_t kMaxModelWidth = 262'144;  // hidden size; heads x head size of queries, keys, values
inline constexpr int64_t kMaxModelIntermediate = 1'048'576;
inline constexpr int64_t kMaxModelVocab = 4'194'304;
inline constexpr int64_t kMaxModelLayers = 1'024;
inline constexpr int64_t kMaxModelHeads = 4'096;    // of each kind
inline constexpr int64_t kMaxModelHeadDim = 4'096;  // of each kind
// With 256 sequences the fp32 cache of all of these is below 2^63 bytes, so that plans need no checked arithmetic.
inline constexpr int64_t kMaxModelPositions = 4'194'304;

// tokenizer.json and tokenizer_config.json.
inline constexpr int64_t kMaxTokenizerBytes = 134'217'728;
inline constexpr int64_t kMaxTokenIds = 4'194'304;     // ids are below it
inline constexpr int64_t kMaxUnusedTokenIds = 65'536;  // that an id may leave before it without a token
inline constexpr int64_t kMaxAddedTokens = 4'096;
inline constexpr int64_t kMaxAddedTokenBytes = 1'024;
inline constexpr int64_t kMaxPatternBytes = 4'096;       // of the split pattern
inline constexpr int64_t kMaxPatternSteps = 10'000'000;  // of one match of it, and 4 for each byte of text
inline constexpr int64_t kMaxPatternMs = 2'000;          // of processor time for all matches in a text, and 5 us for each byte

// Policy files.
inline constexpr int64_t kMaxPolicyBytes = 1'048'576;
inline constexpr int64_t kMaxPolicyRules = 10'000;
inline constexpr int64_t kMaxGlobBytes = 1'024;

// Stores.
inline constexpr int64_t kMaxManifestBytes = 268'435'456;
inline constexpr int64_t kMaxCopiedBytes = 536'870'912;  // of a file copied into a store
inline constexpr int64_t kMaxShards = 65'536;
inline constexpr int64_t kMaxPieces = 65'536;                     // of a tensor
inline constexpr int64_t kMaxStoreDimension = 1'099'511'627'776;  // rows or columns
inline constexpr int64_t kMaxTensorElements =
    4'611'686'018'427'387'904;  // of one tensor anywhere: element counts and sizes stay below

// Texts.
inline constexpr int64_t kMaxTextBytes = 1'073'741'824;  // of a prompt or a text to measure
inline constexpr int64_t kMaxNllFileBytes = 4'294'967'296;
inline constexpr int64_t kMaxNllValues = 134'217'728;

}  // namespace pq
