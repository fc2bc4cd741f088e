job "graceful-stop" {
  type = "service"

  group "service" {
    task "service" {
      driver       = "elide"
      kill_signal  = "SIGTERM"
      kill_timeout = "10s"

      config {
        language = "javascript"
        code     = <<-CODE
        process.on('SIGTERM', () => {
          console.log('saving');
          setTimeout(() => { console.log('saved'); process.exit(0); }, 500);
        });
        console.log('ready');
        setInterval(() => {}, 1000);
        CODE
      }

      resources {
        memory = 64
      }
    }
  }
}
