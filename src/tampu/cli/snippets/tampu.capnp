# A workerd configuration: your Worker on http://127.0.0.1:8787, its AI binding answered by Tampu.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "tampu", external = (address = "127.0.0.1:8900", http = ())),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8787", http = (), service = "main")],
);

const worker :Workerd.Worker = (
  modules = [(name = "worker", esModule = embed "dist/index.js")],
  compatibilityDate = "2025-01-01",
  bindings = [
    ( name = "AI",
      wrapped = (
        moduleName = "cloudflare-internal:ai-api",
        innerBindings = [(name = "fetcher", service = "tampu")],
      ),
    ),
  ],
);
