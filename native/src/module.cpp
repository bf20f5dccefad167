// The extension module tampu._native.
#include <nanobind/nanobind.h>

namespace tampu {
void bind_linear(nanobind::module_& m);
}

NB_MODULE(_native, m) { tampu::bind_linear(m); }
