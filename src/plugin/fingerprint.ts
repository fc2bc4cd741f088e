import { FingerprintResponse, FingerprintResponse_HealthState as Health } from '../gen/nomad/driver.ts';
import { log } from './log.ts';

/** How it stands with a driver; attributes by the names that follow its own, '' for that itself. */
export interface Fingerprint {
  health: Health;
  healthDescription: string;
  attributes?: Record<string, string>;
}

/** Each look that differs from the one before, as the agent reads it, and as a line of its log. */
export async function* fingerprints(
  name: string,
  looks: AsyncIterable<Fingerprint>,
): AsyncGenerator<FingerprintResponse> {
  let told = '';
  for await (const { health, healthDescription, attributes: found = {} } of looks) {
    const attributes = Object.entries(found).map(([key, value]) => [
      ['driver', name, key].filter(Boolean).join('.'),
      { value: { $case: 'stringVal' as const, value } },
    ]);
    const fingerprint = { health, healthDescription, attributes: Object.fromEntries(attributes) };
    if (JSON.stringify(fingerprint) === told) continue;
    told = JSON.stringify(fingerprint);
    log(health === Health.HEALTHY ? 'info' : 'warn', healthDescription);
    yield FingerprintResponse.fromPartial(fingerprint);
  }
}
