import { findNomad } from './build-nomad.ts';

/** Says once for the whole run why what needs a real Nomad is skipped. */
export default function setup(): void {
  if (findNomad() !== undefined) return;
  console.log('skipped: there is no Nomad here; npm run build:nomad makes one (it needs Go), NOMAD_BIN names another');
}
