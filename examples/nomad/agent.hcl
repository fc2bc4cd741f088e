# A client and server in one, for trying things out:
#   nomad agent -dev -plugin-dir=/opt/nomad/plugins -config=examples/nomad/agent.hcl
# The socket is that of the units beside this file; a daemon that is started by hand has /tmp/elide-daemon.sock.
client {
  enabled = true
}

plugin "elide" {
  config {
    daemon_socket = "/run/elide/daemon.sock"
    session_config {
      context_pool_size = 10
      enabled_languages = ["python", "javascript", "typescript"]
    }
  }
}
