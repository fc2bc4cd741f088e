import type { DaemonAddress } from '../client/index.ts';
import type { SessionConfiguration } from '../supervisor/requests.ts';

/** What a plugin's configuration says of its daemon; empty text says nothing. */
export interface DaemonSettings {
  daemon_socket?: string | undefined;
  /** Used where there is no socket. */
  daemon_address?: string | undefined;
  daemon_tls?:
    | { ca_file?: string | undefined; cert_file?: string | undefined; key_file?: string | undefined }
    | undefined;
  daemon_token_file?: string | undefined;
  daemon?: 'connect' | 'spawn' | undefined;
  daemon_path?: string | undefined;
}

/** What a plugin's configuration says of its session. */
export interface SessionSettings {
  context_pool_size?: number | undefined;
  enabled_languages?: string[] | undefined;
  enabled_intrinsics?: string[] | undefined;
  memory_limit_mb?: number | undefined;
  enable_ai?: boolean | undefined;
}

/** Where the daemon listens. */
export function addressOf(settings: DaemonSettings): DaemonAddress {
  const { daemon_socket: socket, daemon_address: tcp, daemon_tls: files, daemon_token_file: tokenFile } = settings;
  const tls = files && { caFile: files.ca_file, certFile: files.cert_file, keyFile: files.key_file };
  if (tcp && !socket) return { tcp, tls, tokenFile };
  return { socket: socket || process.env.ELIDE_DAEMON_SOCKET || '/tmp/elide-daemon.sock' };
}

/** How the session is to be. */
export const sessionOf = (settings: SessionSettings | undefined): SessionConfiguration => ({
  contextPoolSize: settings?.context_pool_size,
  enabledLanguages: settings?.enabled_languages,
  enabledIntrinsics: settings?.enabled_intrinsics,
  memoryLimitMb: settings?.memory_limit_mb,
  enableAi: settings?.enable_ai,
});

/** Which of them do not go together, for people. */
export function contradictionIn(settings: DaemonSettings): string | undefined {
  const { daemon, daemon_path: path, daemon_tls: tls, daemon_token_file: tokenFile } = settings;
  const isTcp = 'tcp' in addressOf(settings);
  const spawns = daemon === 'spawn';
  const found = [
    spawns && !path && 'daemon = "spawn" needs daemon_path',
    spawns && isTcp && 'daemon = "spawn" starts one on daemon_socket, not on daemon_address',
    tls && !isTcp && 'daemon_tls needs daemon_address, without daemon_socket',
    tokenFile && !isTcp && 'daemon_token_file needs daemon_address, without daemon_socket',
  ];
  return found.filter(Boolean).join('; ') || undefined;
}
