# nomad job dispatch -meta name=World parameterized payload.json
job "parameterized" {
  type = "batch"

  parameterized {
    payload       = "required"
    meta_required = ["name"]
  }

  group "work" {
    task "work" {
      driver = "elide"

      dispatch_payload {
        file = "payload.json"
      }

      config {
        language = "javascript"
        code     = <<-CODE
        const { readFileSync } = require('node:fs');
        const payload = JSON.parse(readFileSync(process.env.NOMAD_TASK_DIR + '/payload.json', 'utf8'));
        console.log('hello', process.env.NOMAD_META_name, payload.items.length);
        CODE
      }

      resources {
        memory = 64
      }
    }
  }
}
