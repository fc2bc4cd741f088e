"""Answers on the port it is given, at the address Nomad checks: /health, and anything else with who it is."""
import json
import logging
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

logging.basicConfig(level=os.environ.get('LOG_LEVEL', 'WARNING'), stream=sys.stdout, format='%(levelname)s %(message)s')


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({'alloc': os.environ.get('NOMAD_ALLOC_INDEX'), 'path': self.path}).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        logging.debug(format, *args)


address = os.environ.get('NOMAD_IP_http', '127.0.0.1')
server = ThreadingHTTPServer((address, int(sys.argv[1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
logging.info('listening on %s:%s', address, sys.argv[1])
server.serve_forever()
