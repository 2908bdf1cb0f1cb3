// Classifies one image with a compiled model, without Python: the program links the artifact and the C
// library only.
//
//     classify ARTIFACT INPUT [--threads N] [--runs N] [--mean R,G,B] [--std R,G,B] [--output FILE]
//
// INPUT is a binary PPM picture (P6), or a file with the model's raw input (little-endian, row-major). A
// picture is cropped to the middle, resized (bilinear), divided by 255, and normalised as (value - mean) /
// std; the defaults, 0.5 and 0.5, are those of EfficientNet-Lite. Prints the five highest classes and the
// median time of a run.

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "bitsmith.h"

namespace {

// Allocators on 64-bit machines give BITSMITH_ALIGNMENT (16 bytes): a vector needs nothing special.
using Floats = std::vector<float>;

struct Options {
    std::string artifact, input, output;
    int threads = 1, runs = 20;
    float mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.5f, 0.5f, 0.5f};
};

struct Picture {
    int width = 0, height = 0;
    std::vector<unsigned char> rgb;  // [height][width][3]
};

struct Close {
    void operator()(bitsmith_model *model) const { bitsmith_close(model); }
};
using Model = std::unique_ptr<bitsmith_model, Close>;

void check(int32_t code) {
    if (code != BITSMITH_OK) throw std::runtime_error(bitsmith_last_error());
}

int positive(const std::string &option, const char *text) {
    char *end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end || end == text || value < 1 || value > 1000000)
        throw std::runtime_error(option + " must be a positive number, not '" + text + "'");
    return static_cast<int>(value);
}

void three_numbers(const std::string &option, const char *text, float *out) {
    int used = 0;
    if (std::sscanf(text, "%f,%f,%f%n", &out[0], &out[1], &out[2], &used) != 3 || text[used])
        throw std::runtime_error(option + " must be three numbers such as 0.5,0.5,0.5, not '" + text + "'");
}

Options parse(int argc, char **argv) {
    Options options;
    std::vector<std::string> places;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        if (word.rfind("--", 0) != 0) {
            places.push_back(word);
            continue;
        }
        if (i + 1 == argc) throw std::runtime_error(word + " needs a value");
        const char *value = argv[++i];
        if (word == "--threads")
            options.threads = positive(word, value);
        else if (word == "--runs")
            options.runs = positive(word, value);
        else if (word == "--mean")
            three_numbers(word, value, options.mean);
        else if (word == "--std")
            three_numbers(word, value, options.std);
        else if (word == "--output")
            options.output = value;
        else
            throw std::runtime_error("unknown option " + word);
    }
    if (places.size() != 2)
        throw std::runtime_error("usage: classify ARTIFACT INPUT [--threads N] [--runs N] ...");
    options.artifact = places[0];
    options.input = places[1];
    return options;
}

std::vector<char> read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path + ": " + std::strerror(errno));
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The next number of a PPM header, behind blanks and comments.
int header_number(const std::vector<char> &bytes, size_t &at) {
    while (at < bytes.size() && (std::isspace(static_cast<unsigned char>(bytes[at])) || bytes[at] == '#')) {
        if (bytes[at] == '#')
            at = std::find(bytes.begin() + at, bytes.end(), '\n') - bytes.begin();
        else
            at++;
    }
    int value = 0;
    while (at < bytes.size() && std::isdigit(static_cast<unsigned char>(bytes[at])) && value < 100000)
        value = value * 10 + (bytes[at++] - '0');
    return value;
}

Picture parse_ppm(const std::vector<char> &bytes, const std::string &path) {
    size_t at = 2;
    Picture picture;
    picture.width = header_number(bytes, at);
    picture.height = header_number(bytes, at);
    const int depth = header_number(bytes, at);
    at++;  // the one blank before the pixels
    const size_t size = size_t{3} * picture.width * picture.height;
    if (!size || depth != 255 || bytes.size() < at || bytes.size() - at < size)
        throw std::runtime_error(path + " is not a whole PPM picture (P6) of 8 bits");
    picture.rgb.assign(bytes.begin() + at, bytes.begin() + at + size);
    return picture;
}

// The largest middle rectangle of the wanted proportions, resized; channel values 0 to 255.
float sample(const Picture &p, int channel, double x, double y) {
    const double cx = std::clamp(x, 0.0, p.width - 1.0), cy = std::clamp(y, 0.0, p.height - 1.0);
    const int x0 = static_cast<int>(cx), y0 = static_cast<int>(cy);
    const int x1 = std::min(x0 + 1, p.width - 1), y1 = std::min(y0 + 1, p.height - 1);
    auto at = [&](int column, int row) {
        return double(p.rgb[(size_t(row) * p.width + column) * 3 + channel]);
    };
    const double top = at(x0, y0) + (at(x1, y0) - at(x0, y0)) * (cx - x0);
    const double bottom = at(x0, y1) + (at(x1, y1) - at(x0, y1)) * (cx - x0);
    return static_cast<float>(top + (bottom - top) * (cy - y0));
}

Floats to_input(const Picture &picture, const bitsmith_tensor &want, const Options &options) {
    const bool channels_first = want.rank == 4 && want.shape[1] == 3;
    if (want.rank != 4 || want.shape[0] != 1 || (!channels_first && want.shape[3] != 3))
        throw std::runtime_error(
            "the model's input is not one RGB picture: give its raw input instead of a PPM");
    const int height = static_cast<int>(want.shape[channels_first ? 2 : 1]);
    const int width = static_cast<int>(want.shape[channels_first ? 3 : 2]);
    const double scale = std::min(double(picture.width) / width, double(picture.height) / height);
    const double left = (picture.width - width * scale) / 2, top = (picture.height - height * scale) / 2;
    Floats input(size_t{3} * height * width);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++) {
                const float value =
                    sample(picture, c, left + (x + 0.5) * scale - 0.5, top + (y + 0.5) * scale - 0.5);
                const size_t place =
                    channels_first ? (size_t(c) * height + y) * width + x : (size_t(y) * width + x) * 3 + c;
                input[place] = (value / 255 - options.mean[c]) / options.std[c];
            }
    return input;
}

Floats load_input(const bitsmith_tensor &want, const Options &options) {
    const std::vector<char> bytes = read_file(options.input);
    if (bytes.size() > 2 && bytes[0] == 'P' && bytes[1] == '6')
        return to_input(parse_ppm(bytes, options.input), want, options);
    if (bytes.size() != want.bytes)
        throw std::runtime_error(options.input + " has " + std::to_string(bytes.size()) + " bytes, input '" +
                                 want.name + "' has " + std::to_string(want.bytes) +
                                 "; and it is no PPM picture");
    Floats input(bytes.size() / sizeof(float));
    std::memcpy(input.data(), bytes.data(), bytes.size());
    return input;
}

// Runs once to warm up, then `runs` times; returns the median of the times in milliseconds.
double median_run(bitsmith_model *model, const Floats &input, Floats &output, int runs) {
    const void *inputs[] = {input.data()};
    void *outputs[] = {output.data()};
    std::vector<double> times;
    check(bitsmith_run(model, inputs, outputs));
    for (int i = 0; i < runs; i++) {
        const auto start = std::chrono::steady_clock::now();
        check(bitsmith_run(model, inputs, outputs));
        times.push_back(
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return times[runs / 2];
}

void print_top(const Floats &logits, size_t count) {
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    count = std::min(count, order.size());
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (const float value : logits) sum += std::exp(double(value) - logits[order[0]]);
    for (size_t i = 0; i < count; i++)
        std::printf("class %zu  probability %.4f  logit %.6g\n", order[i],
                    std::exp(double(logits[order[i]]) - logits[order[0]]) / sum, logits[order[i]]);
}

void run(const Options &options) {
    if (bitsmith_input_count() != 1 || bitsmith_output_count() != 1 ||
        std::strcmp(bitsmith_input(0)->dtype, "float32") || std::strcmp(bitsmith_output(0)->dtype, "float32"))
        throw std::runtime_error("this program wants a model of one float32 input and one float32 output");
    bitsmith_model *opened = nullptr;
    check(bitsmith_open(BITSMITH_ABI_VERSION, options.artifact.c_str(), &opened));
    const Model model(opened);
    check(bitsmith_set_threads(model.get(), options.threads));
    const Floats input = load_input(*bitsmith_input(0), options);
    Floats output(bitsmith_output(0)->bytes / sizeof(float));
    const double milliseconds = median_run(model.get(), input, output, options.runs);
    print_top(output, 5);
    std::printf("%s: median %.3f ms of %d runs, %d thread%s\n", bitsmith_model_name(), milliseconds,
                options.runs, options.threads, options.threads == 1 ? "" : "s");
    if (options.output.empty()) return;
    std::ofstream file(options.output, std::ios::binary);
    file.write(reinterpret_cast<const char *>(output.data()), std::streamsize(output.size() * sizeof(float)));
    if (!file.flush())
        throw std::runtime_error("cannot write " + options.output + ": " + std::strerror(errno));
}

}  // namespace

int main(int argc, char **argv) {
    try {
        run(parse(argc, argv));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "classify: %s\n", error.what());
        return 1;
    }
    return 0;
}
