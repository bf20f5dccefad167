// The extension module tampu._native.
#include <nanobind/nanobind.h>

namespace tampu {
void bind_linear(nanobind::module_& m);
void bind_runner(nanobind::module_& m);
}  // namespace tampu

NB_MODULE(_native, m) {
  // A server stopped by Ctrl-C ends with its engine still referenced; nanobind would print a page about that.
  nanobind::set_leak_warnings(false);
  tampu::bind_linear(m);
  tampu::bind_runner(m);
}
