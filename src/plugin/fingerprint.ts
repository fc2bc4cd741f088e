import { Attribute, FingerprintResponse, FingerprintResponse_HealthState as Health } from '../gen/nomad/driver.ts';
import { log } from './log.ts';

/**
 * By the names that follow a driver's own, part by part; '' for that itself. Below `unique` are those that nodes differ in
 * which are alike otherwise.
 */
export interface Attributes {
  [name: string]: string | number | Attributes;
}

/** How it stands with a driver. */
export interface Fingerprint {
  health: Health;
  healthDescription: string;
  attributes?: Attributes;
}

/**
 * Each look that differs from the one before, as the agent reads it, and as a line of its log. The agent keeps an attribute
 * until it is told that it is empty.
 */
export async function* fingerprints(
  name: string,
  looks: AsyncIterable<Fingerprint>,
): AsyncGenerator<FingerprintResponse> {
  let told = '';
  const gone: Record<string, Attribute> = {};
  for await (const { health, healthDescription, attributes: found = {} } of looks) {
    const { unique = {}, ...shared } = found;
    const own = namedFrom(`unique.driver.${name}`, unique as Attributes);
    const named = Object.fromEntries([...namedFrom(`driver.${name}`, shared), ...own]);
    const attributes = { ...gone, ...named };
    for (const each of Object.keys(named)) gone[each] = attributeOf('');
    const fingerprint = { health, healthDescription, attributes };
    if (JSON.stringify(fingerprint) === told) continue;
    told = JSON.stringify(fingerprint);
    log(health === Health.HEALTHY ? 'info' : 'warn', healthDescription);
    yield FingerprintResponse.fromPartial(fingerprint);
  }
}

/** Each value by its full name. */
function* namedFrom(prefix: string, attributes: Attributes): Generator<[string, Attribute]> {
  for (const [key, value] of Object.entries(attributes)) {
    const name = key === '' ? prefix : `${prefix}.${key}`;
    if (typeof value === 'object') yield* namedFrom(name, value);
    else yield [name, attributeOf(String(value))];
  }
}

const attributeOf = (value: string) => Attribute.fromPartial({ value: { $case: 'stringVal', value } });
