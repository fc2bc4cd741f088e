import pkg from '../../package.json' with { type: 'json' };
import { DriverService } from '../gen/nomad/driver.ts';
import { basePlugin, NOMAD } from '../plugin/base-plugin.ts';
import { servePlugin } from '../plugin/serve.ts';
import { PLUGIN } from './configuration.ts';
import { driver } from './driver.ts';
import { NodeDaemon } from './node-daemon.ts';

/** The executable that a Nomad agent starts: composition root. */
const hint = 'elide: this is a Nomad task driver; put it into the plugin_dir of a Nomad agent, which starts it';

servePlugin({ ...NOMAD, hint }, (server) => {
  const node = new NodeDaemon();
  const configure = node.configure.bind(node);
  const base = basePlugin({ name: 'elide', version: pkg.version, configuration: PLUGIN, configure });
  server.addService(base.service, { ...base.server });
  server.addService(DriverService, driver(node));
});
