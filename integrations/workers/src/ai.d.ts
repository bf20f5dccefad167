/** The `Ai` binding as an ordinary object, over any fetcher. */

export interface Fetcher {
  fetch(input: Request | URL | string, init?: RequestInit): Promise<Response>;
}

export interface RunOptions {
  gateway?: { id: string; [option: string]: unknown };
  returnRawResponse?: boolean;
  queueRequest?: boolean;
  extraHeaders?: Record<string, string>;
  prefix?: string;
  tags?: string[];
  signal?: AbortSignal;
  [option: string]: unknown;
}

export interface ModelSearch {
  author?: string;
  hide_experimental?: boolean;
  page?: number;
  per_page?: number;
  search?: string;
  source?: number;
  task?: string;
}

export interface Model {
  id: string;
  name: string;
  source: number;
  description: string;
  task: { id: string; name: string; description: string };
  tags: string[];
  properties: { property_id: string; value: unknown }[];
}

/** Rejection of a call that the server refused: `message` is `<code>: <text>`. */
export class InferenceUpstreamError extends Error {
  constructor(message: string, name?: string);
}

/** Rejection of a call that could not be made or whose answer could not be read. */
export class AiInternalError extends Error {
  constructor(message: string, name?: string);
}

export class Ai {
  constructor(fetcher: Fetcher);
  lastRequestId: string | null;
  aiGatewayLogId: string | null;
  lastRequestHttpStatusCode: number | null;
  lastRequestInternalStatusCode: number | null;
  run(
    model: string,
    inputs: Record<string, unknown>,
    options: RunOptions & { returnRawResponse: true },
  ): Promise<Response>;
  run(
    model: string,
    inputs: Record<string, unknown> & { stream: true },
    options?: RunOptions,
  ): Promise<ReadableStream<Uint8Array>>;
  run(model: string, inputs: Record<string, unknown>, options?: RunOptions): Promise<any>;
  models(params?: ModelSearch): Promise<Model[]>;
  fetch(input: Request | URL | string, init?: RequestInit): Promise<Response>;
  gateway(): never;
  autorag(): never;
  toMarkdown(): never;
}

export interface ServerOptions {
  /** Where Tampu listens; default `http://127.0.0.1:8900`. */
  url?: string;
  /** A token, if the server asks for one. */
  token?: string;
  /** The function that sends requests; default the global `fetch`. */
  fetch?: typeof globalThis.fetch;
}

export function httpFetcher(options?: ServerOptions): Fetcher;
export function createAI(options?: ServerOptions & { fetcher?: Fetcher }): Ai;
