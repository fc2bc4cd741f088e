# (cd examples/nomad && python3 -m http.server 8000 --bind 127.0.0.1) serves the script.
variable "source" {
  description = "Where server.py is to be had: Nomad takes no local paths."
  default     = "http://127.0.0.1:8000/server.py"
  type        = string
}

job "http-server" {
  type = "service"

  group "servers" {
    count = 3

    network {
      port "http" {}
    }

    service {
      name     = "http-server"
      port     = "http"
      provider = "nomad"

      check {
        type     = "http"
        path     = "/health"
        interval = "2s"
        timeout  = "1s"
      }
    }

    task "server" {
      driver = "elide"

      artifact {
        source      = var.source
        destination = "local/server.py"
        mode        = "file"
      }

      config {
        script = "local/server.py"
        args   = ["${NOMAD_PORT_http}"]
      }

      env {
        LOG_LEVEL = "INFO"
      }

      resources {
        memory = 64
      }
    }
  }
}
