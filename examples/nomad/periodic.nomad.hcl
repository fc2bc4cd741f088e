job "periodic" {
  type = "batch"

  periodic {
    crons            = ["*/1 * * * * * *"]
    prohibit_overlap = true
  }

  group "tick" {
    task "tick" {
      driver = "elide"

      config {
        language = "python"
        code     = "import time; print('tick', int(time.time()))"
      }

      resources {
        memory = 64
      }
    }
  }
}
