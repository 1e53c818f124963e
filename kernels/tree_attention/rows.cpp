// Tree attention on a CPU, and the writing of a pass's new rows, over pages and for all sequences in one call.
//
// A row sees a path: its sequence's context, then its visible nodes. Paths are gone through in blocks of 64 slots with
// a running softmax. The blocks of the context are the same for all rows of a sequence and are read once for up to four
// of them; the last piece of the context and the nodes are gathered for every node of the tree by itself. What is
// computed for a row depends on its own path alone, in the order of the path: its bits are the same alone, in a batch
// and in a tree, and those of one-token decoding.
//
// Vectors are the compiler's own (GCC, clang), 16 lanes of float32, in whatever registers the machine has. It has to
// be told to fuse products and sums (-ffp-contract=fast): the same everywhere, or bits differ from one tile to another.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ivec{__VA_ARGS__})
#endif

namespace {

constexpr int LANES = 16, BLOCK = 64;  // floats of a vector; slots of a block
constexpr int TILE = 4, ROWS = 32;  // rows that share reads; rows of a thread's task
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));
typedef uint16_t half __attribute__((vector_size(LANES * 2)));

struct bfloat16 { uint16_t bits; };

inline vec load(const float* from) { vec x; std::memcpy(&x, from, sizeof x); return x; }

inline vec load(const bfloat16* from) {
  half x;
  std::memcpy(&x, from, sizeof x);
  return (vec)(__builtin_convertvector(x, uvec) << 16);
}

inline void store(float* to, vec x) { std::memcpy(to, &x, sizeof x); }

inline void store(bfloat16* to, vec x) {  // to the nearest, ties to even; NaN stays NaN
  uvec bits = (uvec)x;
  uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  uvec nan = (uvec)(x != x);
  half y = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), half);
  std::memcpy(to, &y, sizeof y);
}

inline vec choose(ivec which, vec yes, vec no) { return (vec)(((ivec)yes & which) | ((ivec)no & ~which)); }

inline vec greater(vec a, vec b) { return choose(a > b, a, b); }

// Lanes 0 to 7 of x against 8 to 15, and so on down to one.
template <typename F>
inline float fold(vec x, F of) {
  x = of(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = of(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = of(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  x = of(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return x[0];
}

// Four vectors' sums, a quarter in each quarter: lanes 0, 4, 8 and 12 add up to that of a, 1, 5, 9 and 13 to b's ...
inline vec quarters(vec a, vec b, vec c, vec d) {
  auto half = [](vec x, vec y) {
    return SHUFFLE(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           SHUFFLE(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  };
  const vec x = half(a, b), y = half(c, d);
  return SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

// Of four such vectors, the sixteen sums.
inline vec wholes(vec a, vec b, vec c, vec d) {
  auto half = [](vec x, vec y) {
    return SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  };
  const vec x = half(a, b), y = half(c, d);
  return half(x, y);
}

inline vec exp(vec x) {  // of x up to 0: relative error below 2e-7, 0 below -87; NaN stays NaN
  ivec none = x < -87.0f, number = x == x;
  vec n = x * 1.44269504f + 12582912.0f;  // rounded by adding 1.5 * 2^23
  ivec power = (ivec)n << 23;
  n -= 12582912.0f;
  vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  vec y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  return choose(none, vec{}, choose(number, (vec)((ivec)y + power), x));
}

struct Row {  // of one head: where its running softmax stands
  float* q;  // [D], scaled
  float* out;  // [Dv], not yet divided
  float top, total;
  int64_t first, end;  // of its path, what it sees
};

template <int R, int V, typename T>  // V vectors of every row's output, from d on
void add(Row* rows, const float (&weights)[R][BLOCK], const T* const* values, int64_t low, int64_t high, int64_t d) {
  vec out[R][V];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < V; i++) out[r][i] = load(rows[r].out + d + i * LANES);
  for (int64_t j = low; j < high; j++)
    for (int i = 0; i < V; i++) {
      vec value = load(values[j] + d + i * LANES);
      for (int r = 0; r < R; r++) out[r][i] += value * weights[r][j];
    }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < V; i++) store(rows[r].out + d + i * LANES, out[r][i]);
}

// R rows over one block: `slots` slots, places `at` and following of their paths.
template <int R, typename T>
void block(Row* rows, const T* const* keys, const T* const* values, int64_t at, int64_t slots, int64_t dim,
           int64_t width) {
  float weights[R][BLOCK];
  for (int group = 0; group < slots; group += LANES) {
    vec dots[4][R];
    for (int four = 0; four < 4; four++) {
      const T* const* key = keys + group + 4 * four;
      vec total[4][R] = {};
      for (int64_t d = 0; d < dim; d += LANES)
        for (int j = 0; j < 4; j++) {
          const vec k = load(key[j] + d);
          for (int r = 0; r < R; r++) total[j][r] += k * load(rows[r].q + d);
        }
      for (int r = 0; r < R; r++) dots[four][r] = quarters(total[0][r], total[1][r], total[2][r], total[3][r]);
    }
    for (int r = 0; r < R; r++)
      store(weights[r] + group, wholes(dots[0][r], dots[1][r], dots[2][r], dots[3][r]));
  }
  int64_t low = BLOCK, high = 0;
  const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int r = 0; r < R; r++) {
    Row& row = rows[r];
    int64_t first = std::max<int64_t>(row.first - at, 0), end = std::min<int64_t>(row.end - at, BLOCK);
    if (first >= end) {
      std::fill(weights[r], weights[r] + BLOCK, 0.0f);
      continue;
    }
    low = std::min(low, first);
    high = std::max(high, end);
    vec most = vec{} + NOTHING;
    for (int group = 0; group < slots; group += LANES) {
      ivec place = lane + group;
      vec score = choose((place >= (int)first) & (place < (int)end), load(weights[r] + group), vec{} + NOTHING);
      most = greater(score, most);
      store(weights[r] + group, score);
    }
    float top = std::max(row.top, fold(most, greater));
    if (top == NOTHING) top = 0;  // all scores are -inf
    float shrink = std::exp(row.top - top);
    vec total = {};
    for (int group = 0; group < slots; group += LANES) {
      vec weight = exp(load(weights[r] + group) - top);
      store(weights[r] + group, weight);
      total += weight;
    }
    row.total = row.total * shrink + fold(total, [](vec a, vec b) { return a + b; });
    row.top = top;
    if (shrink != 1)
      for (int64_t d = 0; d < width; d += LANES) store(row.out + d, load(row.out + d) * shrink);
  }
  int64_t d = 0;
  for (; d + 4 * LANES <= width; d += 4 * LANES) add<R, 4>(rows, weights, values, low, high, d);
  for (; d < width; d += LANES) add<R, 1>(rows, weights, values, low, high, d);
}

template <typename T>
void block(int count, Row* rows, const T* const* keys, const T* const* values, int64_t at, int64_t slots, int64_t dim,
           int64_t width) {
  switch (count) {
    case 1: return block<1>(rows, keys, values, at, slots, dim, width);
    case 2: return block<2>(rows, keys, values, at, slots, dim, width);
    case 3: return block<3>(rows, keys, values, at, slots, dim, width);
    default: return block<4>(rows, keys, values, at, slots, dim, width);
  }
}

}  // namespace

extern "C" {

struct Span {  // consecutive rows of one sequence; see plan.py
  int64_t sequence, first, end, context, size, offset;
};

struct Step {  // what the layers of a pass share
  const Span* spans;
  const int32_t* tables;  // [B, pages of a sequence]
  const int64_t* words;  // [R, words], or null for chains
  int64_t count, table, word, threads;
};

struct Layer {  // what is its own; strides in elements, of rows (or pages), heads and slots
  const void *q, *new_k, *new_v;
  void *keys, *values, *out;
  const float* sinks;  // [Hq], or null
  const int64_t* written;  // [written rows, 3]: row, page, place in the page
  int64_t written_rows;
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;
  int64_t key_page, key_head, key_slot, value_page, value_head, value_slot;
  int64_t heads, group, dim, width, page, window;
  double scale;
};
}

namespace {

template <typename T>
void write_rows(const Layer& layer) {
  for (int64_t i = 0; i < layer.written_rows; i++) {
    const int64_t row = layer.written[3 * i], page = layer.written[3 * i + 1], place = layer.written[3 * i + 2];
    for (int64_t head = 0; head < layer.heads; head++) {
      T* key = (T*)layer.keys + page * layer.key_page + head * layer.key_head + place * layer.key_slot;
      T* value = (T*)layer.values + page * layer.value_page + head * layer.value_head + place * layer.value_slot;
      std::memcpy(key, (const T*)layer.new_k + row * layer.k_row + head * layer.k_head, layer.dim * sizeof(T));
      std::memcpy(value, (const T*)layer.new_v + row * layer.v_row + head * layer.v_head, layer.width * sizeof(T));
    }
  }
}

// Some rows of a sequence, and the query heads of one KV head.
template <typename T>
void attend(const Step& step, const Layer& layer, const Span& span, int64_t first, int64_t end, int64_t head) {
  const int64_t nodes = end - first, group = layer.group, dim = layer.dim, width = layer.width;
  const int32_t* table = step.tables + span.sequence * step.table;
  const T* key_base = (const T*)layer.keys + head * layer.key_head;
  const T* value_base = (const T*)layer.values + head * layer.value_head;
  std::vector<float> memory(nodes * group * (dim + width));
  std::vector<Row> rows(nodes * group);
  std::vector<std::vector<int64_t>> paths(nodes);  // nodes that a row sees
  for (int64_t i = 0; i < nodes; i++) {
    const int64_t row = first + i;
    std::vector<int64_t>& path = paths[i];
    if (!step.words)
      for (int64_t node = 0; node <= span.offset + row - span.first && node < span.size; node++) path.push_back(node);
    else
      for (int64_t node = 0; node < span.size; node++)
        if (step.words[row * step.word + node / 64] >> (node % 64) & 1) path.push_back(node);
    const int64_t last = span.context + (int64_t)path.size();
    for (int64_t g = 0; g < group; g++) {
      const int64_t at = i * group + g, query = head * group + g;
      Row& one = rows[at];
      one.q = memory.data() + at * (dim + width);
      one.out = one.q + dim;
      one.end = last;
      one.first = layer.window ? std::max<int64_t>(0, last - layer.window) : 0;
      one.top = layer.sinks ? layer.sinks[query] : NOTHING;
      one.total = layer.sinks ? 1.0f : 0.0f;
      const T* q = (const T*)layer.q + row * layer.q_row + query * layer.q_head;
      for (int64_t d = 0; d < dim; d += LANES) store(one.q + d, load(q + d) * (float)layer.scale);
    }
  }
  auto point = [&](std::vector<const T*>& keys, std::vector<const T*>& values, int64_t slot, int64_t count) {
    keys.resize(count);
    values.resize(count);
    for (int64_t j = 0; j < count;) {  // a page after the other
      int64_t place = (slot + j) % layer.page;
      const int64_t page = table[(slot + j) / layer.page];
      const T* key = key_base + page * layer.key_page + place * layer.key_slot;
      const T* value = value_base + page * layer.value_page + place * layer.value_slot;
      for (; place < layer.page && j < count; place++, j++, key += layer.key_slot, value += layer.value_slot)
        keys[j] = key, values[j] = value;
    }
  };
  int64_t begin = span.context;  // the first place that some row sees
  for (const Row& row : rows) begin = std::min(begin, row.first);
  const int64_t whole = span.context / BLOCK * BLOCK;
  std::vector<const T*> keys, values, last_keys(BLOCK), last_values(BLOCK);
  for (int64_t at = begin / BLOCK * BLOCK; at < whole; at += BLOCK) {
    point(keys, values, at, BLOCK);
    for (int64_t r = 0; r < nodes * group; r += TILE)
      block<T>((int)std::min<int64_t>(TILE, nodes * group - r), &rows[r], keys.data(), values.data(), at, BLOCK, dim,
               width);
  }
  point(keys, values, whole, span.context + span.size - whole);
  for (int64_t i = 0; i < nodes; i++) {
    const std::vector<int64_t>& path = paths[i];
    const int64_t last = rows[i * group].end;
    for (int64_t at = std::max(whole, rows[i * group].first / BLOCK * BLOCK); at < last; at += BLOCK) {
      const int64_t slots = std::min<int64_t>(BLOCK, last - at);
      for (int64_t j = 0; j < BLOCK; j++) {  // what is not there is the last one once more, and not looked at
        const int64_t place = at + std::min(j, slots - 1);
        const int64_t slot = (place < span.context ? place : span.context + path[place - span.context]) - whole;
        last_keys[j] = keys[slot];
        last_values[j] = values[slot];
      }
      for (int64_t g = 0; g < group; g += TILE)
        block<T>((int)std::min<int64_t>(TILE, group - g), &rows[i * group + g], last_keys.data(), last_values.data(),
                 at, slots, dim, width);
    }
  }
  for (int64_t i = 0; i < nodes; i++)
    for (int64_t g = 0; g < group; g++) {
      const Row& row = rows[i * group + g];
      T* out = (T*)layer.out + ((first + i) * layer.heads * group + head * group + g) * width;
      const float scale = row.total == 0 ? 0.0f : 1.0f / row.total;
      for (int64_t d = 0; d < width; d += LANES) store(out + d, load(row.out + d) * scale);
    }
}

template <typename T>
void run(const Step& step, const Layer& layer) {
  write_rows<T>(layer);
  struct Part { const Span* span; int64_t first, end, head; };
  std::vector<Part> parts;
  const int64_t most = std::max<int64_t>(1, ROWS / std::max<int64_t>(1, layer.group));
  for (int64_t i = 0; i < step.count; i++)
    for (int64_t head = 0; head < layer.heads; head++)
      for (int64_t first = step.spans[i].first; first < step.spans[i].end; first += most)
        parts.push_back({step.spans + i, first, std::min(first + most, step.spans[i].end), head});
#pragma omp parallel for schedule(dynamic) num_threads((int)step.threads) if (step.threads > 1)
  for (int64_t i = 0; i < (int64_t)parts.size(); i++)
    attend<T>(step, layer, *parts[i].span, parts[i].first, parts[i].end, parts[i].head);
}

}  // namespace

extern "C" {
void rows_float32(const Step* step, const Layer* layer) noexcept { run<float>(*step, *layer); }
void rows_bfloat16(const Step* step, const Layer* layer) noexcept { run<bfloat16>(*step, *layer); }
}
