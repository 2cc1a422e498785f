"""The mathematics: schedules, processes, denoisers, guidance, objectives, samplers. torch only."""
