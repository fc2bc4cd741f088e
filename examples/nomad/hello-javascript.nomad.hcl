job "hello-javascript" {
  type = "batch"

  group "hello" {
    task "hello" {
      driver = "elide"

      config {
        language = "javascript"
        code     = <<-CODE
        console.log("hello from JavaScript", process.version, "in", process.env.NOMAD_TASK_NAME);
        CODE
      }

      resources {
        memory = 64
      }
    }
  }
}
