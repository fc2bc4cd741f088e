job "batch" {
  type = "batch"

  group "work" {
    count = 200

    ephemeral_disk {
      size = 10
    }

    task "work" {
      driver = "elide"

      config {
        language  = "javascript"
        isolation = "thread"
        code      = "console.log(\"part\", process.env.NOMAD_ALLOC_INDEX, \"of 200\")"
      }

      logs {
        max_files     = 1
        max_file_size = 1
      }

      resources {
        cpu    = 10
        memory = 32
      }
    }
  }
}
