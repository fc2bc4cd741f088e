//go:build tools

// Package nomad names the one dependency whose executable the tests run.
package nomad

import _ "github.com/hashicorp/nomad"
