job "hello-typescript" {
  type = "batch"

  group "hello" {
    task "hello" {
      driver = "elide"

      config {
        language = "typescript"
        code     = <<-CODE
        const where: string = process.env.NOMAD_TASK_NAME ?? "";
        console.log("hello from TypeScript", process.version, "in", where);
        CODE
      }

      resources {
        memory = 64
      }
    }
  }
}
