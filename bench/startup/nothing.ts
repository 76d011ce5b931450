// What Deno itself takes to start.
