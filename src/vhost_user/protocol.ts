/**
 * The numbers of the vhost-user protocol, under the names that the specification gives them (without the prefix
 * `VHOST_USER_`).
 *
 * @module
 */

/** Requests of the front end. */
export const Request = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  SET_BACKEND_REQ_FD: 21,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
  GET_SHMEM_CONFIG: 44,
} as const satisfies Readonly<Record<string, number>>;

/** The name of a request of the front end. */
export type RequestName = keyof typeof Request;

/** Requests of the back end, on the socket of SET_BACKEND_REQ_FD. */
export const BackendRequest = {
  IOTLB_MSG: 1,
  CONFIG_CHANGE_MSG: 2,
  VRING_HOST_NOTIFIER_MSG: 3,
  VRING_CALL: 4,
  VRING_ERR: 5,
  SHARED_OBJECT_ADD: 6,
  SHARED_OBJECT_REMOVE: 7,
  SHARED_OBJECT_LOOKUP: 8,
  SHMEM_MAP: 9,
  SHMEM_UNMAP: 10,
} as const satisfies Readonly<Record<string, number>>;

const REQUEST_NAMES = new Map<number, RequestName>(
  Object.entries(Request).map(([name, id]) => [id, name as RequestName]),
);
const BACKEND_REQUEST_NAMES = new Map<number, string>(Object.entries(BackendRequest).map(([name, id]) => [id, name]));

/** What messages call a request of the front end. */
export function requestName(id: number): string {
  return REQUEST_NAMES.get(id) ?? `request ${id}`;
}

/** What messages call a request of the back end. */
export function backendRequestName(id: number): string {
  return BACKEND_REQUEST_NAMES.get(id) ?? `back-end request ${id}`;
}

/** Protocol features, as bits to be combined: `ProtocolFeature.MQ | ProtocolFeature.CONFIG`. */
export const ProtocolFeature = {
  /** The back end says how many queues it can have. */
  MQ: 1n << 0n,
  /** It logs its writes into shared memory. */
  LOG_SHMFD: 1n << 1n,
  /** It broadcasts a fake RARP. */
  RARP: 1n << 2n,
  /** It acknowledges each request. */
  REPLY_ACK: 1n << 3n,
  /** It can be told the MTU. */
  MTU: 1n << 4n,
  /** It makes requests of its own. */
  BACKEND_REQ: 1n << 5n,
  /** It takes part in post-copy migration. */
  PAGEFAULT: 1n << 8n,
  /** It has the device's configuration space. */
  CONFIG: 1n << 9n,
  /** Its requests may carry descriptors. */
  BACKEND_SEND_FD: 1n << 10n,
  /** It offers doorbells to be mapped into the guest. */
  HOST_NOTIFIER: 1n << 11n,
  /** It keeps track of what it is working on in shared memory, and can go on with it after a crash. */
  INFLIGHT_SHMFD: 1n << 12n,
  /** It can be reset. */
  RESET_DEVICE: 1n << 13n,
  /** Notifications go by message. */
  INBAND_NOTIFICATIONS: 1n << 14n,
  /** Memory regions are added and removed one at a time. */
  CONFIGURE_MEM_SLOTS: 1n << 15n,
  /** It has a virtio device status. */
  STATUS: 1n << 16n,
  /** It maps files into shared memory regions of the device. */
  SHMEM: 1n << 22n,
} as const satisfies Readonly<Record<string, bigint>>;

/** The protocol features this front end can make use of. */
export const KNOWN_PROTOCOL_FEATURES: bigint = ProtocolFeature.MQ | ProtocolFeature.LOG_SHMFD | ProtocolFeature.RARP |
  ProtocolFeature.REPLY_ACK | ProtocolFeature.MTU | ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG |
  ProtocolFeature.BACKEND_SEND_FD | ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.RESET_DEVICE |
  ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.STATUS | ProtocolFeature.SHMEM;

/** The virtio feature bit by which a back end says that it logs its writes (VHOST_F_LOG_ALL). */
export const F_LOG_ALL: bigint = 1n << 26n;
/** The virtio feature bit by which a back end says that it has protocol features. */
export const F_PROTOCOL_FEATURES: bigint = 1n << 30n;
/** The virtio feature bit of packed rings (VIRTIO_F_RING_PACKED). */
export const F_RING_PACKED: bigint = 1n << 34n;

/** The flag of SET_VRING_ADDR that asks for writes to the used ring to be logged (VHOST_VRING_F_LOG). */
export const VRING_F_LOG = 1;

/** How many regions SET_MEM_TABLE has room for. */
export const MAX_TABLE_REGIONS = 8;
/** How many descriptors a message may carry. */
export const MAX_FDS = 8;
/** The largest device configuration space, in bytes. */
export const MAX_CONFIG_SIZE = 256;
/** How many vrings there can be: their index has eight bits. */
export const MAX_VRINGS = 256;

/** The protocol version, in the low two bits of a message's flags. */
export const VERSION = 1;
const VERSION_MASK = 3;
/** The flag of a message that it is a reply. */
export const FLAG_REPLY = 1 << 2;
/** The flag of a message that asks for an acknowledgement. */
export const FLAG_NEED_REPLY = 1 << 3;
/** The bit of a vring's number that says that no descriptor comes with the message. */
export const NO_FD = 1 << 8;

/** Whether a message's flags name the version that is spoken here. */
export function isKnownVersion(flags: number): boolean {
  return (flags & VERSION_MASK) === VERSION;
}
