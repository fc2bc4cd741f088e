job "hello-python" {
  type = "batch"

  group "hello" {
    task "hello" {
      driver = "elide"

      config {
        language = "python"
        code     = <<-CODE
        import os, sys
        print("hello from Python", sys.version.split()[0], "in", os.environ["NOMAD_TASK_NAME"])
        CODE
      }

      resources {
        memory = 64
      }
    }
  }
}
