# A client and server in one, for trying things out:
#   nomad agent -dev -plugin-dir=/opt/nomad/plugins -config=examples/nomad/agent.hcl
client {
  enabled = true
}

plugin "elide" {
  config {
    daemon_socket = "/tmp/elide-daemon.sock"
    session_config {
      context_pool_size = 10
      enabled_languages = ["python", "javascript", "typescript"]
    }
  }
}
